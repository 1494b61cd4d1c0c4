//! Images: built, imported, pulled, and carried from one engine to another.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::ImageInspect;
use bollard::query_parameters::{
    BuildImageOptionsBuilder, CreateImageOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptionsBuilder,
    RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;

use super::{Engine, EngineError};

/// The last lines of a build's output that an error shows.
const SHOWN: usize = 15;

/// The files of a build.
pub struct BuildContext(tar::Builder<Vec<u8>>);

/// A line of a build's output.
pub type BuildLine<'a> = &'a str;

impl Default for BuildContext {
    fn default() -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        // A classic builder does not know GNU's sparse entries.
        builder.sparse(false);
        Self(builder)
    }
}

impl BuildContext {
    /// Adds a file of the host, with its mode.
    ///
    /// # Errors
    /// [`EngineError::Io`].
    pub fn file(mut self, path: &Path, name: &str) -> Result<Self, EngineError> {
        let added = self.0.append_path_with_name(path, name);
        added.map_err(|source| EngineError::Io {
            action: "read for an image build",
            path: path.to_owned(),
            source,
        })?;
        Ok(self)
    }

    /// Adds a file with this text.
    ///
    /// # Errors
    /// [`EngineError::Io`].
    pub fn text(mut self, name: &str, text: &str) -> Result<Self, EngineError> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let added = self.0.append_data(&mut header, name, text.as_bytes());
        added.map_err(|source| EngineError::Io {
            action: "add to an image build",
            path: name.into(),
            source,
        })?;
        Ok(self)
    }
}

impl Engine {
    /// Looks at an image; `None` when it is not there.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn image(&self, reference: &str) -> Result<Option<ImageInspect>, EngineError> {
        let found = self.docker().inspect_image(reference).await;
        match found.map_err(EngineError::call(format!("look at image {reference}"))) {
            Ok(image) => Ok(Some(image)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Builds an image from a Dockerfile in `context`. Steps use the host's network, so that a
    /// resolver on the host's loopback works in them.
    ///
    /// # Errors
    /// [`EngineError::Build`] with the failing step and the last lines of its output.
    pub async fn build(
        &self,
        image: &str,
        context: BuildContext,
        arguments: &[(&str, &str)],
        labels: &HashMap<String, String>,
        mut progress: impl FnMut(BuildLine<'_>),
    ) -> Result<(), EngineError> {
        let failed = |step: &str, reason: String| EngineError::Build {
            image: image.to_owned(),
            step: step.to_owned(),
            reason,
        };
        let tar = context
            .0
            .into_inner()
            .map_err(|e| failed("packing its files", e.to_string()))?;
        let arguments: HashMap<_, _> = arguments.iter().copied().collect();
        let options = BuildImageOptionsBuilder::new()
            .t(image)
            .rm(true)
            .forcerm(true)
            .networkmode("host")
            .buildargs(&arguments)
            .labels(labels)
            .build();
        let mut lines = self
            .docker()
            .build_image(options, None, Some(bollard::body_full(Bytes::from(tar))));
        let mut step = String::from("its first step");
        let mut tail = std::collections::VecDeque::new();
        while let Some(line) = lines.next().await {
            let shown = |tail: &std::collections::VecDeque<String>| {
                tail.iter().cloned().collect::<Vec<_>>().join("\n")
            };
            let info = line.map_err(|error| failed(&step, format!("{error}\n{}", shown(&tail))))?;
            let text = info.stream.unwrap_or_default();
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                if line.starts_with("Step ") {
                    line.clone_into(&mut step);
                }
                progress(line);
                tail.push_back(line.to_owned());
                if tail.len() > SHOWN {
                    tail.pop_front();
                }
            }
            if let Some(error) = info.error_detail.and_then(|detail| detail.message) {
                return Err(failed(&step, format!("{error}\n{}", shown(&tail))));
            }
        }
        Ok(())
    }

    /// Makes an image of a root file system packed as tar.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn import_root(
        &self,
        image: &str,
        root: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), EngineError> {
        let (repo, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(repo)
            .tag(tag)
            .build();
        let body = bollard::body_try_stream(root);
        let done: Result<Vec<_>, _> = self
            .docker()
            .create_image(Some(options), Some(body), None)
            .try_collect()
            .await;
        done.map(drop)
            .map_err(EngineError::call(format!("import image {image}")))
    }

    /// Pulls an image, with a registry's login where one is given.
    ///
    /// # Errors
    /// [`EngineError::NoImage`].
    pub async fn pull(
        &self,
        image: &str,
        login: Option<bollard::auth::DockerCredentials>,
    ) -> Result<(), EngineError> {
        let options = CreateImageOptionsBuilder::new().from_image(image).build();
        let pulled: Result<Vec<_>, _> = self
            .docker()
            .create_image(Some(options), None, login)
            .try_collect()
            .await;
        pulled.map(drop).map_err(|error| EngineError::NoImage {
            image: image.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn tag(&self, image: &str, name: &str) -> Result<(), EngineError> {
        let (repo, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let options = TagImageOptionsBuilder::new().repo(repo).tag(tag).build();
        let tagged = self.docker().tag_image(image, Some(options)).await;
        tagged.map_err(EngineError::call(format!("tag {image} as {name}")))
    }

    /// Carries images into another engine, stream to stream: nothing is kept on disk between.
    ///
    /// # Errors
    /// [`EngineError::Call`] by either engine.
    pub async fn carry_images(&self, images: &[String], to: &Engine) -> Result<(), EngineError> {
        let names: Vec<&str> = images.iter().map(String::as_str).collect();
        let docker = self.docker().clone();
        let names_owned: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, bollard::errors::Error>>(16);
        let export = tokio::spawn(async move {
            let names: Vec<&str> = names_owned.iter().map(String::as_str).collect();
            let mut pieces = std::pin::pin!(docker.export_images(&names));
            while let Some(piece) = pieces.next().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        let options = ImportImageOptionsBuilder::new().quiet(true).build();
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let loaded: Result<Vec<_>, _> = to
            .docker()
            .import_image_stream(options, stream, None)
            .try_collect()
            .await;
        export.abort();
        loaded.map(drop).map_err(EngineError::call(format!(
            "carry images into {}",
            to.socket().display()
        )))
    }

    /// Writes images as one tar; returns its length.
    ///
    /// # Errors
    /// [`EngineError::Call`] by the engine, or when the tar cannot be written.
    pub async fn export_images(
        &self,
        images: &[String],
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> Result<u64, EngineError> {
        let action = || EngineError::call("save images");
        let names: Vec<&str> = images.iter().map(String::as_str).collect();
        let mut pieces = std::pin::pin!(self.docker().export_images(&names));
        let mut written = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(action())?;
            let put = to.write_all(&piece).await;
            put.map_err(|error| action()(error.into()))?;
            written += piece.len() as u64;
        }
        let flushed = to.flush().await;
        flushed.map_err(|error| action()(error.into()))?;
        Ok(written)
    }

    /// Loads images from a tar; `name` is what errors call it.
    ///
    /// # Errors
    /// [`EngineError::Call`], as when it holds no images.
    pub async fn import_images(
        &self,
        from: impl tokio::io::AsyncRead + Send + 'static,
        name: &str,
    ) -> Result<(), EngineError> {
        let options = ImportImageOptionsBuilder::new().quiet(true).build();
        let stream = tokio_util::io::ReaderStream::with_capacity(from, 1 << 20);
        let loaded: Result<Vec<_>, _> = self
            .docker()
            .import_image_stream(options, stream, None)
            .try_collect()
            .await;
        loaded
            .map(drop)
            .map_err(EngineError::call(format!("load images from {name}")))
    }

    /// References of the images of a repository, newest first.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn references(&self, repository: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("reference", vec![repository])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let listed = self.docker().list_images(Some(options)).await;
        let mut listed = listed.map_err(EngineError::call("list images"))?;
        listed.sort_by_key(|image| std::cmp::Reverse(image.created));
        Ok(listed.into_iter().flat_map(|image| image.repo_tags).collect())
    }

    /// Removes a name of an image, and the image with its last name.
    ///
    /// # Errors
    /// [`EngineError::Call`], as when a container uses it.
    pub async fn remove_image(&self, reference: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::new().build();
        let removed = self.docker().remove_image(reference, Some(options), None).await;
        super::error::absent_is_fine(
            removed
                .map(drop)
                .map_err(EngineError::call(format!("remove image {reference}"))),
        )
    }
}
