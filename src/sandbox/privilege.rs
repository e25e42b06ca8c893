//! Root, or the next best thing: a user namespace in which this process may make network namespaces.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use super::{Netns, SandboxError};

/// Makes sure that this process can build a sandbox: as root it does nothing, otherwise it moves the process into a
/// user namespace where it is root over the namespaces that it makes, and over nothing else.
///
/// Call it first thing in `main`: the kernel refuses it once the process has a second thread.
pub fn become_root_in_user_namespace() -> Result<(), SandboxError> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| SandboxError::NotPermitted { error })?;
    let proc = |error| SandboxError::Proc { error };
    // The kernel accepts an unprivileged group map only after setgroups is given up.
    std::fs::write("/proc/self/setgroups", "deny").map_err(proc)?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1")).map_err(proc)?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1")).map_err(proc)?;
    // Some systems let anybody make a user namespace and then withhold its privileges.
    Netns::new("trial").map(drop)
}
