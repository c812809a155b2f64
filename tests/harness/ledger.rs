//! What was acknowledged: for every file all versions that it had, for every worker all states that its names had, and how far each is
//! promised to survive. After a crash the ledger says whether what is there keeps the promises of the design.
//!
//! A file may hold any version from the newest that was acknowledged on, each the content between two calls of `write`, `ftruncate` and
//! the like. The names of one worker may be in any state from the newest acknowledged on: the host filesystem logs changes of names in order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Who must survive what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Nobody: all that returned is there.
    None,
    /// The daemon was killed: what `close` and `fsync` returned for stays, and so does every change of names.
    Kill,
    /// The power was cut: what `fsync` returned for stays.
    PowerCut,
}

/// One version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    hash: blake3::Hash,
    len: usize,
}

impl Version {
    pub fn of(content: &[u8]) -> Self {
        Self {
            hash: blake3::hash(content),
            len: content.len(),
        }
    }
}

/// All that a file ever held since the last crash, oldest first, and which of it was acknowledged.
#[derive(Debug)]
pub struct FileLog {
    pub content: Vec<u8>,
    versions: Vec<(Version, String)>,
    /// The newest version whose call returned.
    returned: usize,
    closed: usize,
    synced: usize,
    /// The step that changed its names last.
    named_at: usize,
    /// As of the last fsync.
    names_synced: usize,
}

/// A file's log, shared with whoever else has the file open.
#[derive(Debug, Clone)]
pub struct LoggedFile(Arc<Mutex<FileLog>>);

impl LoggedFile {
    /// A file that holds `content` and is known to be durable.
    pub fn new(content: Vec<u8>) -> Self {
        let first = (Version::of(&content), "found".to_owned());
        Self(Arc::new(Mutex::new(FileLog {
            content,
            versions: vec![first],
            returned: 0,
            closed: 0,
            synced: 0,
            named_at: 0,
            names_synced: 0,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, FileLog> {
        self.0.lock().unwrap()
    }

    /// Whether both are the same file.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes note of a change of the content, then makes it.
    pub fn change(
        &self,
        what: String,
        edit: impl FnOnce(&mut Vec<u8>),
        make: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let number = {
            let mut log = self.lock();
            edit(&mut log.content);
            let version = Version::of(&log.content);
            log.versions.push((version, what));
            log.versions.len() - 1
        };
        make()?;
        let mut log = self.lock();
        log.returned = log.returned.max(number);
        Ok(())
    }

    /// Takes note of a content that the next change goes through.
    pub fn pass_through(&self, what: String, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut log = self.lock();
        edit(&mut log.content);
        let version = Version::of(&log.content);
        log.versions.push((version, what));
    }

    /// Makes a call that acknowledges what was written before it began, to the death of the daemon (`close`) or to a power cut (`fsync`).
    pub fn acknowledge(
        &self,
        crash: Crash,
        call: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let (returned, named_at) = {
            let log = self.lock();
            (log.returned, log.named_at)
        };
        call()?;
        let mut log = self.lock();
        match crash {
            Crash::None => {}
            Crash::Kill => log.closed = log.closed.max(returned),
            Crash::PowerCut => {
                log.synced = log.synced.max(returned);
                log.names_synced = log.names_synced.max(named_at);
            }
        }
        Ok(())
    }
}

impl FileLog {
    fn floor(&self, crash: Crash) -> usize {
        match crash {
            Crash::None => self.returned,
            Crash::Kill => self.closed.max(self.synced),
            Crash::PowerCut => self.synced,
        }
    }

    fn number_of(&self, found: &Version) -> Option<usize> {
        self.versions.iter().rposition(|(version, _)| version == found)
    }
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Entry {
    Directory,
    File(LoggedFile),
}

/// All names of one worker, as paths from the mount.
pub type Names = BTreeMap<PathBuf, Entry>;

#[derive(Debug)]
struct Step {
    what: String,
    names: Names,
    /// The directories that it changed.
    dirs: Vec<PathBuf>,
    /// Files that replaced others: once the step counts, each holds this version or a newer one.
    whole: Vec<(LoggedFile, usize)>,
}

/// All states that the names of one worker had since the last crash.
#[derive(Debug)]
pub struct NameLog {
    steps: Vec<Step>,
    returned: usize,
    synced: usize,
}

/// What is found under a name after a crash.
#[derive(Debug)]
pub enum Found {
    Directory,
    File { ino: u64, content: Vec<u8> },
    Unreadable(String),
}

/// A name, and what is wrong with it.
type Wrong = (PathBuf, String);

/// A broken promise.
#[derive(Debug)]
pub struct Breach {
    /// What was promised and what is there.
    pub said: String,
    /// The names that are wrong.
    pub paths: Vec<PathBuf>,
}

impl Breach {
    fn of(mut said: String, wrong: Vec<Wrong>) -> Self {
        for (path, reason) in &wrong {
            writeln!(said, "  {}: {reason}", path.display()).unwrap();
        }
        let paths = wrong.into_iter().map(|(path, _)| path).collect();
        Self { said, paths }
    }
}

impl NameLog {
    pub fn new(names: Names) -> Self {
        let first = Step {
            what: "found".into(),
            names,
            dirs: Vec::new(),
            whole: Vec::new(),
        };
        Self {
            steps: vec![first],
            returned: 0,
            synced: 0,
        }
    }

    /// The names as they are now.
    pub fn now(&self) -> &Names {
        &self.steps[self.returned].names
    }

    /// Takes note of a change of names, then makes it.
    pub fn change(
        &mut self,
        what: String,
        dirs: &[&Path],
        files: &[&LoggedFile],
        edit: impl FnOnce(&mut Names),
        make: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        self.change_whole(what, dirs, files, &[], edit, make)
    }

    /// As [`NameLog::change`], and puts files in the place of others: from then on they are never seen older than they are now.
    pub fn change_whole(
        &mut self,
        what: String,
        dirs: &[&Path],
        files: &[&LoggedFile],
        whole: &[&LoggedFile],
        edit: impl FnOnce(&mut Names),
        make: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut names = self.now().clone();
        edit(&mut names);
        self.steps.push(Step {
            what,
            names,
            dirs: dirs.iter().map(|dir| dir.to_path_buf()).collect(),
            whole: whole
                .iter()
                .map(|file| ((*file).clone(), file.lock().returned))
                .collect(),
        });
        make()?;
        self.returned = self.steps.len() - 1;
        for file in files {
            file.lock().named_at = self.returned;
        }
        Ok(())
    }

    /// An fsync of a directory returned.
    pub fn synced(&mut self, dir: &Path) {
        let touched = self.steps[..=self.returned]
            .iter()
            .rposition(|step| step.dirs.iter().any(|touched| touched == dir));
        self.synced = self.synced.max(touched.unwrap_or(0));
    }

    /// Judges what is there after a crash, and begins anew from it. The error tells what is wrong.
    pub fn judge(&mut self, found: &BTreeMap<PathBuf, Found>, crash: Crash) -> Result<(), Breach> {
        let unreadable: Vec<Wrong> = found
            .iter()
            .filter_map(|(path, found)| match found {
                Found::Unreadable(error) => Some((path.clone(), error.clone())),
                _ => None,
            })
            .collect();
        if !unreadable.is_empty() {
            return Err(Breach::of("what cannot be read:\n".into(), unreadable));
        }
        let floor = match crash {
            Crash::None | Crash::Kill => self.returned,
            Crash::PowerCut => self.synced.max(self.names_synced_by_files()),
        };
        let mut closest: Option<(usize, Vec<Wrong>)> = None;
        for number in (floor..self.steps.len()).rev() {
            let wrong = self.differences(number, found, crash);
            if wrong.is_empty() {
                *self = Self::new(restarted(&self.steps[number].names, found));
                return Ok(());
            }
            if closest
                .as_ref()
                .is_none_or(|(_, other)| wrong.len() < other.len())
            {
                closest = Some((number, wrong));
            }
        }
        let (number, wrong) = closest.unwrap_or_default();
        let said = format!(
            "the names are in none of the states {floor} to {}; the closest is {number}, but:\n",
            self.steps.len() - 1
        );
        let mut breach = Breach::of(said, wrong);
        breach.said.push_str("the steps:\n");
        for (number, step) in self.steps.iter().enumerate() {
            let mark = if number == self.synced { " (synced)" } else { "" };
            let mark = if number == self.returned {
                " (returned last)"
            } else {
                mark
            };
            writeln!(breach.said, "  {number}: {}{mark}", step.what).unwrap();
        }
        Err(breach)
    }

    fn names_synced_by_files(&self) -> usize {
        let files = self.steps.iter().flat_map(|step| step.names.values());
        files
            .filter_map(|entry| match entry {
                Entry::File(file) => Some(file.lock().names_synced),
                Entry::Directory => None,
            })
            .max()
            .unwrap_or(0)
    }

    fn differences(&self, number: usize, found: &BTreeMap<PathBuf, Found>, crash: Crash) -> Vec<Wrong> {
        let names = &self.steps[number].names;
        let mut wrong = Vec::new();
        let mut inodes: Vec<(&LoggedFile, u64)> = Vec::new();
        for (path, entry) in names {
            match (entry, found.get(path)) {
                (_, None) => wrong.push((path.clone(), "is missing".into())),
                (Entry::Directory, Some(Found::Directory)) => {}
                (Entry::File(file), Some(Found::File { ino, content })) => {
                    let known = inodes.iter().find(|(other, _)| other.is(file));
                    if known.is_some_and(|(_, other)| other != ino) {
                        wrong.push((path.clone(), "is no link to its inode any more".into()));
                    }
                    inodes.push((file, *ino));
                    if let Err(reason) = self.judge_content(number, file, content, crash) {
                        wrong.push((path.clone(), reason));
                    }
                }
                (_, Some(_)) => wrong.push((path.clone(), "is of another kind".into())),
            }
        }
        let extra = found.keys().filter(|path| !names.contains_key(*path));
        wrong.extend(extra.map(|path| (path.clone(), "should not be there".into())));
        wrong
    }

    fn judge_content(
        &self,
        number: usize,
        file: &LoggedFile,
        content: &[u8],
        crash: Crash,
    ) -> Result<(), String> {
        let log = file.lock();
        let replaced = self.steps[..=number].iter().flat_map(|step| &step.whole);
        let replaced = replaced
            .filter(|(other, _)| other.is(file))
            .map(|(_, version)| *version);
        let (acknowledged, replaced) = (log.floor(crash), replaced.max().unwrap_or(0));
        let found = log.number_of(&Version::of(content));
        if found.is_some_and(|found| found >= acknowledged.max(replaced)) {
            return Ok(());
        }
        let mut said = match found {
            Some(found) => format!("holds version {found}, but version {acknowledged} was acknowledged"),
            None => format!("holds {} bytes that were never its content", content.len()),
        };
        if replaced > acknowledged {
            write!(said, ", and it replaced another file with version {replaced}").unwrap();
        }
        said.push_str("; its versions:");
        for (number, (version, what)) in log.versions.iter().enumerate() {
            write!(said, "\n      {number}: {} bytes after {what}", version.len).unwrap();
            for (mark, at) in [
                ("returned", log.returned),
                ("closed", log.closed),
                ("synced", log.synced),
            ] {
                if at == number {
                    write!(said, " [{mark}]").unwrap();
                }
            }
        }
        Err(said)
    }
}

/// The same names, each file as it was found.
fn restarted(names: &Names, found: &BTreeMap<PathBuf, Found>) -> Names {
    let mut files: Vec<(LoggedFile, LoggedFile)> = Vec::new();
    let mut restart = |old: &LoggedFile, content: &[u8]| {
        if let Some((_, new)) = files.iter().find(|(other, _)| other.is(old)) {
            return new.clone();
        }
        let new = LoggedFile::new(content.to_vec());
        files.push((old.clone(), new.clone()));
        new
    };
    names
        .iter()
        .map(|(path, entry)| match (entry, found.get(path)) {
            (Entry::File(file), Some(Found::File { content, .. })) => {
                (path.clone(), Entry::File(restart(file, content)))
            }
            _ => (path.clone(), Entry::Directory),
        })
        .collect()
}

/// The ledger itself: it must see what it is there to see.
mod tests {
    use super::*;

    fn judged(
        content: &[u8],
        crash: Crash,
        work: impl FnOnce(&mut NameLog, &LoggedFile),
    ) -> Result<(), Breach> {
        let file = LoggedFile::new(b"old".to_vec());
        let path = PathBuf::from("f");
        let mut names = NameLog::new([(path.clone(), Entry::File(file.clone()))].into());
        work(&mut names, &file);
        let content = content.to_vec();
        names.judge(&[(path, Found::File { ino: 1, content })].into(), crash)
    }

    fn write(file: &LoggedFile, content: &[u8]) {
        let edit = |old: &mut Vec<u8>| *old = content.to_vec();
        file.change("a write".into(), edit, || Ok(())).unwrap();
    }

    #[test]
    fn what_was_acknowledged_must_be_there_and_nothing_that_never_was() {
        for (acknowledged, crash, found, kept) in [
            (None, Crash::Kill, "old", true),
            (Some(Crash::Kill), Crash::Kill, "old", false),
            (Some(Crash::Kill), Crash::Kill, "new", true),
            (Some(Crash::Kill), Crash::PowerCut, "old", true),
            (Some(Crash::PowerCut), Crash::PowerCut, "old", false),
            (Some(Crash::PowerCut), Crash::Kill, "old", false),
            (Some(Crash::PowerCut), Crash::PowerCut, "newer", true),
            (None, Crash::PowerCut, "ol", false),
            (None, Crash::PowerCut, "", false),
        ] {
            let said = judged(found.as_bytes(), crash, |_, file| {
                write(file, b"new");
                if let Some(crash) = acknowledged {
                    file.acknowledge(crash, || Ok(())).unwrap();
                }
                write(file, b"newer");
            });
            assert_eq!(said.is_ok(), kept, "{acknowledged:?} {crash:?} {found}: {said:?}");
        }
    }

    #[test]
    fn names_are_in_a_state_that_was_and_not_before_the_last_that_was_synced() {
        let rename = |names: &mut NameLog, from: &str, to: &str| {
            let edit = |names: &mut Names| {
                let entry = names.remove(Path::new(from)).unwrap();
                names.insert(to.into(), entry);
            };
            let what = format!("{from} to {to}");
            names
                .change(what, &[Path::new("")], &[], edit, || Ok(()))
                .unwrap();
        };
        assert!(judged(b"old", Crash::PowerCut, |names, _| rename(names, "f", "g")).is_ok());
        assert!(judged(b"old", Crash::Kill, |names, _| rename(names, "f", "g")).is_err());
        let synced = judged(b"old", Crash::PowerCut, |names, _| {
            rename(names, "f", "g");
            names.synced(Path::new(""));
        });
        assert!(synced.is_err());
        let back = judged(b"old", Crash::Kill, |names, _| {
            rename(names, "f", "g");
            rename(names, "g", "f");
        });
        assert!(back.is_ok());
    }

    #[test]
    fn what_replaced_a_file_is_whole() {
        let replaced = |found: &[u8]| {
            judged(found, Crash::PowerCut, |names, file| {
                let new = LoggedFile::new(Vec::new());
                write(&new, b"new");
                let edit = |names: &mut Names| drop(names.insert("f".into(), Entry::File(new.clone())));
                names
                    .change_whole("replace".into(), &[], &[], &[&new], edit, || Ok(()))
                    .unwrap();
                write(file, b"of no name");
            })
        };
        assert!(replaced(b"old").is_ok() && replaced(b"new").is_ok());
        assert!(replaced(b"").is_err());
    }
}
