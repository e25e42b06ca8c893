//! Watches the folder of manifests: inotify events go in, "read it again" comes out, coalesced. It never reads a file.
//!
//! A watch is armed anew before every read. So it does not matter how the folder changed (an editor's rename, a
//! ConfigMap's `..data` link, the folder moved away and made again), nor what the old watch still saw of it: whatever
//! happens after the watch was armed is seen, and whatever happened before is read.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long the folder must be quiet before it is read: whoever writes several files is not read half way.
pub const QUIET: Duration = Duration::from_millis(75);

/// How long a folder that is never quiet can put off the read.
pub const AT_LATEST: Duration = Duration::from_secs(1);

/// A folder, watched.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    events: mpsc::Sender<()>,
    watcher: Option<RecommendedWatcher>,
}

/// Where the changes of a [`Folder`] arrive.
#[derive(Debug)]
pub struct Changes {
    events: mpsc::Receiver<()>,
    /// When the first and the last event of the change came that has not been told yet.
    pending: Option<(Instant, Instant)>,
    quiet: Duration,
    at_latest: Duration,
}

/// A folder and its changes; nothing is watched until it is armed.
pub fn watch(path: &Path) -> io::Result<(Folder, Changes)> {
    let (events, changes) = signal(QUIET, AT_LATEST);
    let folder = Folder {
        path: std::path::absolute(path)?,
        events,
        watcher: None,
    };
    Ok((folder, changes))
}

/// Changes without a folder: whoever has the sender makes them. They are told when there has been none for `quiet`, and
/// `at_latest` after the first.
pub(crate) fn signal(quiet: Duration, at_latest: Duration) -> (mpsc::Sender<()>, Changes) {
    // One slot is enough: an event that finds it full tells nothing new.
    let (sender, events) = mpsc::channel(1);
    let changes = Changes {
        events,
        pending: None,
        quiet,
        at_latest,
    };
    (sender, changes)
}

impl Folder {
    /// Where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Watches what is there now. Call it before each read; the watch before it goes on until this one stands.
    ///
    /// The directory that holds the folder is watched too, or the nearest one that exists, to see the folder come back.
    pub fn arm(&mut self) -> notify::Result<()> {
        let (path, events) = (self.path.clone(), self.events.clone());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| !concerns(&event, &path)) {
                return;
            }
            // Full: the read is due anyway. Closed: the agent ends.
            let _ = events.try_send(());
        })?;
        let above = self.path.ancestors().skip(1).find(|path| path.is_dir());
        if let Some(above) = above {
            watcher.watch(above, RecursiveMode::NonRecursive)?;
        }
        match watcher.watch(&self.path, RecursiveMode::Recursive) {
            Err(error) if is_missing(&error) => {}
            other => other?,
        }
        self.watcher = Some(watcher);
        Ok(())
    }
}

impl Changes {
    /// Waits for a change, and then until the folder has been quiet for [`QUIET`], but not longer than [`AT_LATEST`].
    ///
    /// Dropped before it is done, it loses nothing: the next call goes on where this one was.
    pub async fn next(&mut self) {
        let (first, mut last) = match self.pending {
            Some(pending) => pending,
            None => match self.events.recv().await {
                Some(()) => (Instant::now(), Instant::now()),
                // The folder is gone from the program; nothing will ever change.
                None => std::future::pending().await,
            },
        };
        loop {
            self.pending = Some((first, last));
            let due = (last + self.quiet).min(first + self.at_latest);
            match timeout_at(due, self.events.recv()).await {
                Ok(Some(())) => last = Instant::now(),
                Ok(None) => {
                    sleep_until(due).await;
                    break;
                }
                Err(_) => break,
            }
            if Instant::now() >= first + self.at_latest {
                break;
            }
        }
        self.pending = None;
    }

    /// Whether something has changed that [`next`](Self::next) has not told yet.
    pub fn any(&self) -> bool {
        self.pending.is_some() || !self.events.is_empty()
    }
}

/// Changes as of a folder.
#[cfg(test)]
pub(crate) fn changes() -> (mpsc::Sender<()>, Changes) {
    signal(QUIET, AT_LATEST)
}

/// Whether an event says that the manifests may have changed.
fn concerns(event: &Event, folder: &Path) -> bool {
    if event.need_rescan() || event.paths.is_empty() {
        return true;
    }
    // Opening and reading are seen as well: without this the agent's own reads would wake it for ever.
    if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) {
        return false;
    }
    // Beside the folder: its neighbours, which do not matter, and the directories on the way to it, which do.
    let on_the_way = |path: &PathBuf| path.starts_with(folder) || folder.starts_with(path);
    event.paths.iter().any(on_the_way)
}

fn is_missing(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    /// Real inotify needs real time; a machine under load gets plenty.
    const SOON: Duration = Duration::from_secs(20);

    /// Lets `act` happen in an armed folder, and checks that the change is told, and that then there is peace.
    #[track_caller]
    fn check(prepare: impl FnOnce(&Path), act: impl FnOnce(&Path)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let root = tempfile::tempdir().expect("directory");
        let path = root.path().join("manifests");
        fs::create_dir(&path).expect("folder");
        prepare(&path);
        let (mut folder, mut changes) = watch(&path).expect("watch");
        folder.arm().expect("armed");
        let seen = runtime.block_on(async {
            act(&path);
            let seen = timeout(SOON, changes.next()).await.is_ok();
            // On a busy machine a part of it comes after a quiet time, and is told as well; but not for ever.
            let start = Instant::now();
            let mut quiet = false;
            while !quiet && start.elapsed() < SOON {
                folder.arm().expect("armed again");
                read_all(&path);
                fs::write(root.path().join("neighbour"), "unrelated").expect("write");
                quiet = timeout(QUIET * 4, changes.next()).await.is_err() && !changes.any();
            }
            (seen, quiet)
        });
        assert_eq!(seen, (true, true), "(seen, quiet after the agent's own read)");
    }

    fn read_all(path: &Path) {
        let Ok(entries) = fs::read_dir(path) else { return };
        for entry in entries {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                read_all(&path);
            } else {
                fs::read(path).expect("read");
            }
        }
    }

    fn put(path: PathBuf) {
        fs::write(path, "kind: Namespace").expect("write");
    }

    #[test]
    fn a_file_written_in_place() {
        check(|dir| put(dir.join("a.yaml")), |dir| put(dir.join("a.yaml")));
    }

    #[test]
    fn a_file_that_an_editor_renames_into_place() {
        check(
            |dir| put(dir.join("a.yaml")),
            |dir| {
                put(dir.join(".a.yaml.swp"));
                fs::rename(dir.join(".a.yaml.swp"), dir.join("a.yaml")).expect("rename");
            },
        );
    }

    #[test]
    fn a_file_removed() {
        check(
            |dir| put(dir.join("a.yaml")),
            |dir| fs::remove_file(dir.join("a.yaml")).expect("remove"),
        );
    }

    #[test]
    fn a_file_moved_in_from_elsewhere() {
        let elsewhere = tempfile::tempdir().expect("directory");
        put(elsewhere.path().join("a.yaml"));
        check(
            |_| {},
            |dir| fs::rename(elsewhere.path().join("a.yaml"), dir.join("a.yaml")).expect("rename"),
        );
    }

    #[test]
    fn a_file_in_a_new_folder_below() {
        check(
            |_| {},
            |dir| {
                fs::create_dir_all(dir.join("team/shop")).expect("folder");
                put(dir.join("team/shop/a.yaml"));
            },
        );
    }

    #[test]
    fn a_config_map_that_is_swapped() {
        let version = |dir: &Path, name: &str| {
            fs::create_dir(dir.join(name)).expect("folder");
            put(dir.join(name).join("a.yaml"));
            symlink(name, dir.join("..data_tmp")).expect("link");
            fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("rename");
        };
        check(
            |dir| {
                version(dir, "..2025_01");
                symlink("..data/a.yaml", dir.join("a.yaml")).expect("link");
            },
            |dir| {
                version(dir, "..2025_02");
                fs::remove_dir_all(dir.join("..2025_01")).expect("remove");
            },
        );
    }

    #[test]
    fn the_folder_is_a_link_that_is_moved_on() {
        check(
            |dir| {
                fs::create_dir(dir.with_file_name("one")).expect("folder");
                fs::create_dir(dir.with_file_name("two")).expect("folder");
                fs::remove_dir(dir).expect("remove");
                symlink("one", dir).expect("link");
            },
            |dir| {
                symlink("two", dir.with_file_name("new")).expect("link");
                fs::rename(dir.with_file_name("new"), dir).expect("rename");
            },
        );
    }

    #[tokio::test]
    async fn the_folder_removed_made_again_and_changed() {
        let root = tempfile::tempdir().expect("directory");
        let path = root.path().join("deep/manifests");
        fs::create_dir_all(&path).expect("folder");
        let (mut folder, mut changes) = watch(&path).expect("watch");
        let mut seen = async |what: &str, act: &dyn Fn()| {
            folder.arm().expect("armed");
            // What comes late of the step before is not taken for this one.
            let start = Instant::now();
            while timeout(QUIET * 4, changes.next()).await.is_ok() {
                assert!(start.elapsed() < SOON, "no peace before: {what}");
            }
            act();
            timeout(SOON, changes.next())
                .await
                .unwrap_or_else(|_| panic!("not seen: {what}"));
        };
        seen("removed", &|| {
            fs::remove_dir_all(root.path().join("deep")).expect("remove")
        })
        .await;
        seen("made again", &|| fs::create_dir_all(&path).expect("folder")).await;
        seen("changed", &|| put(path.join("a.yaml"))).await;
        seen("moved away", &|| {
            fs::rename(&path, root.path().join("deep/old")).expect("rename");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_coalesced_but_not_for_ever() {
        let (events, mut changes) = changes();
        let start = Instant::now();
        let busy = tokio::spawn(async move {
            loop {
                let _ = events.try_send(());
                tokio::time::sleep(QUIET / 3).await;
            }
        });
        changes.next().await;
        assert!(
            start.elapsed() >= AT_LATEST && start.elapsed() < AT_LATEST + QUIET,
            "{:?}",
            start.elapsed()
        );
        busy.abort();
        assert!(busy.await.is_err_and(|e| e.is_cancelled()));
        // What came last is told, and then nothing more.
        if changes.any() {
            changes.next().await;
        }
        assert!(timeout(Duration::from_secs(60), changes.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_lost_when_the_wait_is_given_up() {
        let (events, mut changes) = changes();
        events.try_send(()).expect("room");
        assert!(timeout(QUIET / 2, changes.next()).await.is_err());
        assert!(changes.any());
        changes.next().await;
        assert!(!changes.any());
    }
}
