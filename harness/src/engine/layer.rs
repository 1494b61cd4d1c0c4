//! A container's own layer: what it changed of its image, read off the files that the engine keeps of it. An engine
//! that is asked for the same compares whole images, which takes a core a tenth of a second.

use bollard::models::DriverData;

use super::{Engine, EngineError};

/// Takes two arguments for each layer, itself and those below it, separated by colons. Prints an empty line before
/// each, and then a line for each file and directory in it: `new`, `gone` or `changed`, and its path.
const LIST: &str = r#"
# Not every find can print so.
find / -maxdepth 0 -printf '' || exit
while [ $# -gt 1 ]; do
  echo
  find "$1" -mindepth 1 -printf '%y %P\n' | while IFS= read -r line; do
    path=${line#* } change=new
    if [ "${line%% *}" = c ] && [ "$(stat --format %t%T "$1/$path")" = 00 ]; then
      change=gone
    else
      IFS=:
      for below in $2; do
        if [ -e "$below/$path" ] || [ -L "$below/$path" ]; then
          change=changed
          break
        fi
      done
    fi
    echo "$change /$path"
  done
  shift 2
done
"#;

/// Where the engine's host has a container's own layer, and the layers of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    own: String,
    below: String,
}

/// A file or directory that differs from the image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: String,
    /// `new`, `gone` or `changed`.
    pub(crate) kind: String,
}

impl Layer {
    /// What an engine says of a container's files; none where it keeps them in another way than as layers.
    pub(super) fn of(driver: Option<DriverData>) -> Option<Self> {
        let mut data = driver.filter(|driver| driver.name == "overlay2")?.data;
        let (own, below) = (data.remove("UpperDir")?, data.remove("LowerDir")?);
        Some(Self { own, below })
    }

    /// A program that lists these layers where the engine's host is.
    pub(crate) fn listing(layers: &[&Self]) -> Vec<String> {
        let program = ["sh", "-c", LIST, "wopr-layers"].map(str::to_owned);
        let layers = layers
            .iter()
            .flat_map(|layer| [layer.own.clone(), layer.below.clone()]);
        program.into_iter().chain(layers).collect()
    }

    /// Reads what that program printed: the changes of each layer.
    pub(crate) fn listed(printed: &str) -> Vec<Vec<Change>> {
        let mut all = Vec::new();
        for line in printed.lines() {
            match (line.split_once(' '), all.last_mut()) {
                (None, _) => all.push(Vec::new()),
                (Some((kind, path)), Some(changes)) => changes.push(Change {
                    path: path.to_owned(),
                    kind: kind.to_owned(),
                }),
                (Some(_), None) => {}
            }
        }
        all
    }

    /// Lists it by the files of this host; none where they are not here, or not ours to read.
    async fn list_here(&self) -> Option<Vec<Change>> {
        std::fs::read_dir(&self.own).ok()?;
        let argv = Self::listing(&[self]);
        let (program, arguments) = argv.split_first()?;
        let ran = tokio::process::Command::new(program)
            .args(arguments)
            .kill_on_drop(true)
            .output()
            .await
            .ok()?;
        let printed = String::from_utf8(ran.stdout).ok()?;
        // What it says of a file that has just gone is of no account.
        Self::listed(&printed).pop().filter(|_| ran.status.success())
    }
}

impl Engine {
    /// What differs in a container from its image, on whatever host the engine runs. What lies on volumes and mounts
    /// is not among it; of a container that is not there there is none.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub(crate) async fn changes(
        &self,
        name: &str,
        layer: Option<&Layer>,
    ) -> Result<Vec<Change>, EngineError> {
        if let Some(layer) = layer
            && let Some(changes) = layer.list_here().await
        {
            return Ok(changes);
        }
        self.compared(name).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pretty_assertions::assert_eq;

    use super::*;

    #[tokio::test]
    async fn what_a_layer_holds_is_new_or_changes_what_lies_below() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["own/etc", "first/etc", "second/usr"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for path in ["own/etc/made here", "own/usr", "own/etc/hosts", "first/etc/hosts"] {
            fs::write(at(path), "").unwrap();
        }
        let text = |path: &str| at(path).display().to_string();
        let layer = Layer {
            own: text("own"),
            below: format!("{}:{}", text("second"), text("first")),
        };
        let mut changes = layer.list_here().await.unwrap();
        changes.sort_by(|one, other| one.path.cmp(&other.path));
        let told: Vec<_> = changes
            .iter()
            .map(|change| format!("{} {}", change.kind, change.path))
            .collect();
        assert_eq!(
            told,
            [
                "changed /etc",
                "changed /etc/hosts",
                "new /etc/made here",
                "changed /usr"
            ]
        );
    }

    #[test]
    fn layers_are_told_apart_where_one_holds_nothing() {
        let kinds = |changes: Vec<Change>| changes.into_iter().map(|change| change.path).collect::<Vec<_>>();
        let listed = Layer::listed("\n\nnew /a b\ngone /c\n\nnew /d\n");
        let paths: Vec<_> = listed.into_iter().map(kinds).collect();
        assert_eq!(
            paths,
            [
                vec![],
                vec!["/a b".to_owned(), "/c".to_owned()],
                vec!["/d".to_owned()]
            ]
        );
    }

    #[tokio::test]
    async fn a_layer_that_is_not_on_this_host_is_not_read_here() {
        let layer = Layer {
            own: "/nowhere/diff".to_owned(),
            below: String::new(),
        };
        assert_eq!(layer.list_here().await, None);
    }

    #[test]
    fn an_engine_that_keeps_no_layers_has_none() {
        let driver = |name: &str, data: &[(&str, &str)]| DriverData {
            name: name.to_owned(),
            data: data
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        assert_eq!(Layer::of(None), None);
        assert_eq!(
            Layer::of(Some(driver("vfs", &[("UpperDir", "/a"), ("LowerDir", "/b")]))),
            None
        );
        assert!(
            Layer::of(Some(driver(
                "overlay2",
                &[("UpperDir", "/a"), ("LowerDir", "/b")]
            )))
            .is_some()
        );
    }
}
