//! Where pages of failed tests are kept.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Meta, html};
use crate::dirs::Dirs;
use crate::history::History;

/// So many pages are kept; then the oldest go.
const MOST: usize = 200;
/// Of a test's name a file's name takes so much.
const LONGEST: usize = 120;
/// Where to, in place of `target/wopr-timelines` of the checkout.
const VARIABLE: &str = "WOPR_TIMELINES";

/// What became of a page. It ends an error's text, and is never the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timeline {
    /// It is there.
    Written(PathBuf),
    /// It could not be written, for this reason.
    NotWritten(String),
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(path) => write!(f, "timeline: {}", path.display()),
            Self::NotWritten(why) => write!(f, "timeline: not written: {why}"),
        }
    }
}

/// Writes the page of a test that failed; its title is the test's name.
pub(crate) async fn write(dirs: &Dirs, history: History, meta: Meta) -> Timeline {
    let chosen = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let directory = chosen.map_or_else(|| dirs.root.join("target/wopr-timelines"), PathBuf::from);
    let shown = directory.display().to_string();
    // On a thread of its own: the disk may be slow, and not even a panic there hides why the test failed.
    let written = tokio::task::spawn_blocking(move || {
        let name = file_name(&meta.title, &meta.topology);
        keep(&directory, &name, &html(&history, &meta))
    });
    match written.await {
        Ok(Ok(path)) => Timeline::Written(path),
        Ok(Err(error)) => Timeline::NotWritten(format!(
            "cannot write into {shown}: {error}; make it writable, or point {VARIABLE} elsewhere"
        )),
        Err(_) => {
            Timeline::NotWritten("making the page panicked, which is a fault of the harness".to_owned())
        }
    }
}

/// Name of the test that runs on this thread: nextest's word for it, or else the name that cargo test gives
/// each test's thread.
pub(crate) fn test_name() -> String {
    let thread = std::thread::current();
    name_of(std::env::var("NEXTEST_TEST_NAME").ok(), thread.name())
}

fn name_of(nextest: Option<String>, thread: Option<&str>) -> String {
    let thread = thread.filter(|name| !["main", "tokio-rt-worker"].contains(name));
    let named = nextest.filter(|name| !name.is_empty());
    named
        .or_else(|| thread.map(str::to_owned))
        .unwrap_or_else(|| "history".to_owned())
}

/// `<test>-<topology>.html`, with what a path or a shell could take otherwise replaced.
fn file_name(test: &str, topology: &str) -> String {
    let plain = test.replace("::", ".").replace(
        |letter: char| !(letter.is_ascii_alphanumeric() || "._-".contains(letter)),
        "-",
    );
    let plain: String = plain.trim_start_matches('.').chars().take(LONGEST).collect();
    format!("{plain}-{topology}.html")
}

/// Whether a file's name is one of [`file_name`]: a person's own directory may hold others, which stay.
fn is_ours(name: &str) -> bool {
    let topology = name.strip_suffix(".html").and_then(|stem| stem.rsplit_once('-'));
    topology.is_some_and(|(_, id)| id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Writes a page that its owner alone may read, in one step, and removes the oldest beyond [`MOST`].
fn keep(directory: &Path, name: &str, page: &str) -> io::Result<PathBuf> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let directory = directory.canonicalize()?;
    let path = directory.join(name);
    write_private(&path, page)?;
    // The page is there: that an older one would not go is not its concern.
    let _ = remove_oldest(&directory, &path);
    Ok(path)
}

/// Writes a page that its owner alone may read, in place of what is there.
///
/// # Errors
/// As the system has it; what was there then stays.
pub fn write_private(path: &Path, page: &str) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // Made with mode 0600, and gone again should this fail.
    let mut file = tempfile::Builder::new()
        .prefix(".timeline-")
        .tempfile_in(directory.unwrap_or(Path::new(".")))?;
    file.write_all(page.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn remove_oldest(directory: &Path, newest: &Path) -> io::Result<()> {
    let mut pages: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        if path != newest && entry.file_name().to_str().is_some_and(is_ours) {
            // One that another test has just removed has no time any more.
            if let Ok(modified) = entry.metadata().and_then(|found| found.modified()) {
                pages.push((modified, path));
            }
        }
    }
    pages.sort();
    let beyond = (pages.len() + 1).saturating_sub(MOST);
    for (_, path) in pages.into_iter().take(beyond) {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn a_page_is_named_for_its_test_and_topology() {
        assert_eq!(
            file_name("links::each_toxic::case_1_down", "3f2a10"),
            "links.each_toxic.case_1_down-3f2a10.html"
        );
        assert_eq!(file_name("../../etc/a b", "3f2a10"), "-..-etc-a-b-3f2a10.html");
        assert_eq!(file_name(&"ü".repeat(400), "3f2a10").len(), LONGEST + 12);
    }

    #[test]
    fn a_test_is_known_by_nextests_word_or_by_its_thread() {
        let thread = Some("watchdog::polls");
        assert_eq!(name_of(Some("polls".into()), thread), "polls");
        assert_eq!(name_of(None, thread), "watchdog::polls");
        assert_eq!(name_of(Some(String::new()), Some("tokio-rt-worker")), "history");
        assert_eq!(
            test_name().rsplit("::").next(),
            Some("a_test_is_known_by_nextests_word_or_by_its_thread")
        );
    }

    #[test]
    fn a_page_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("new");
        let path = keep(&new, "a-3f2a10.html", "older").unwrap();
        // Whatever the process's umask makes of new files, and whatever was there.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        keep(&new, "a-3f2a10.html", "page").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "page");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn beyond_two_hundred_the_oldest_pages_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str, minutes: u64| {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            let then = SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minutes);
            file.set_modified(then).unwrap();
        };
        touch("index.html", 0);
        touch("a-note-of-mine.html", 0);
        for number in 0..MOST as u64 + 3 {
            touch(&format!("test-{number:06x}.html"), number + 1);
        }
        keep(dir.path(), "new-ffffff.html", "page").unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), MOST + 2);
        for kept in [
            "index.html",
            "a-note-of-mine.html",
            "new-ffffff.html",
            "test-000004.html",
        ] {
            assert!(names.iter().any(|name| name == kept), "{kept} is gone");
        }
        assert!(!names.iter().any(|name| name == "test-000003.html"));
    }

    #[tokio::test]
    async fn a_page_that_cannot_be_written_says_why() {
        let dirs = Dirs {
            root: "/dev/null".into(),
            state: "/".into(),
            run: "/".into(),
        };
        let meta = Meta {
            title: "a test".into(),
            topology: "3f2a10".into(),
            failings: Vec::new(),
            notes: Vec::new(),
        };
        let history = History::new(crate::clock::Rate::FAST, Vec::new());
        let text = write(&dirs, history, meta).await.to_string();
        assert!(
            text.starts_with("timeline: not written: cannot write into /dev/null/target"),
            "{text}"
        );
    }
}
