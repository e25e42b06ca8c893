//! What the manifests of `deploy/` leave a container: one capability, no way to another, and nothing to write to.

use std::process::{Command, Output};
use std::time::Duration;

use super::{Agent, Folder, PROGRAM, REPAIRED, in_a_namespace, nft, table, until_within};

/// The program with no capability but NET_ADMIN (or without that as well), on a root file system that is read-only.
fn confined(capabilities: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-ec",
            "mount -o remount,bind,ro / && exec \"$@\"",
            "sh",
            "setpriv",
        ])
        .args([
            "--no-new-privs",
            &format!("--bounding-set={capabilities}"),
            "--inh-caps=-all",
        ])
        .arg(PROGRAM)
        .args(arguments);
    command
}

fn cleanup(capabilities: &str) -> Output {
    confined(capabilities, &["cleanup".to_owned()])
        .output()
        .expect("unshare and setpriv, of util-linux")
}

#[test]
fn the_agent_and_cleanup_need_one_capability_and_no_file_system() {
    in_a_namespace(
        "privileges::the_agent_and_cleanup_need_one_capability_and_no_file_system",
        || {
            let folder = Folder::new();
            let log = folder.root.path().join("log");
            let mut command = confined("-all,+net_admin", &folder.arguments("127.0.0.1:0"));
            let agent = Agent::run(&mut command, log);
            agent.until_ready();
            // Long enough for the agent to have looked at what it wrote.
            std::thread::sleep(Duration::from_millis(1500));
            nft("flush table inet palisade");
            until_within(REPAIRED, "what others do is undone", || {
                agent.metric("palisade_drift_repairs_total 1")
            });
            assert!(agent.stop().success());
            let held = table();
            assert!(held.is_some());

            let refused = cleanup("-all");
            assert_eq!(refused.status.code(), Some(2), "{refused:?}");
            assert_eq!(table(), held);
            let done = cleanup("-all,+net_admin");
            assert!(done.status.success(), "{done:?}");
            assert_eq!(table(), None);
        },
    );
}
