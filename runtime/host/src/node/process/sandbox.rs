//! What a process of a node may touch beyond its own memory (F-124).
//!
//! The system restricts a thread and all that it starts, for good. So a process is started by a thread that
//! restricts itself first, does nothing else, and ends: no unsafe code, no program in between, and no
//! moment in which the process runs unrestricted. Files are kept by Landlock; sockets, and ways around
//! either, by a filter of system calls.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    thread,
};

use close_fds::CloseFdsBuilder;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use rspp_proto::spec::NetworkAccess;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use thiserror::Error;
use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

/// What a process may touch. It may always read and run its own program and what the system comes with,
/// and nothing of the runtime's: not its environment, not its open files, not its working folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Files and folders that it may read and run, beside these.
    pub reads: Vec<PathBuf>,
    /// Files and folders that it may change.
    pub writes: Vec<PathBuf>,
    /// Whether it may open sockets.
    pub network: NetworkAccess,
    /// Most files that it may hold open.
    pub open_files: u64,
}

impl Default for Sandbox {
    /// Nothing but its program, no network, 64 open files.
    fn default() -> Self {
        Self {
            reads: Vec::new(),
            writes: Vec::new(),
            network: NetworkAccess::Denied,
            open_files: 64,
        }
    }
}

/// Why a process cannot be kept in a sandbox here. It does not run then.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A path of the sandbox's is not there.
    #[error("the sandbox cannot allow `{path}`: {error}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The kernel does not keep processes from files.
    #[error("this kernel cannot keep a process from files (Landlock of Linux 6.2 is needed): {0}")]
    Files(#[from] RulesetError),
    /// The kernel does not filter system calls.
    #[error("this kernel cannot keep a process from system calls (seccomp is needed): {0}")]
    Calls(String),
    /// No thread could be started for it.
    #[error("no thread for it: {0}")]
    Thread(io::Error),
}

/// The thread that starts a process in a sandbox.
const THREAD: &str = "rspp-sandbox";

/// Libraries, interpreters and what they look at: what every program needs, and no secret.
const SYSTEM: &[&str] = &[
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/dev/zero",
    "/dev/urandom",
];
/// What may be written by everybody.
const SINK: &str = "/dev/null";
/// The Landlock that is not done without: truncation belongs to writing.
const NEEDED: ABI = ABI::V3;

/// Refused as `EPERM` in every sandbox: other processes, the kernel's own state, and calls that other calls
/// can be hidden in.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
];

impl Sandbox {
    /// Whether a process of the program at `program` can be kept in this sandbox, here and now: tried on
    /// a thread that ends then.
    pub fn check(&self, program: &Path) -> Result<(), SandboxError> {
        let tried = thread::scope(|scope| {
            let restrict = || self.restrict(program);
            let name = thread::Builder::new().name(THREAD.to_owned());
            let thread = name.spawn_scoped(scope, restrict);
            thread.map(thread::ScopedJoinHandle::join)
        });
        match tried {
            Ok(Ok(restricted)) => restricted,
            Ok(Err(_panic)) => Err(SandboxError::Thread(io::Error::other("it panicked"))),
            Err(error) => Err(SandboxError::Thread(error)),
        }
    }

    /// Starts `command`, of the program at `program`, within the sandbox.
    pub(super) async fn spawn(
        self,
        mut command: Command,
        program: PathBuf,
    ) -> Result<io::Result<Child>, SandboxError> {
        let runtime = Handle::current();
        let (to, from) = oneshot::channel();
        let start = move || {
            let _for_its_pipes = runtime.enter();
            let started = self.restrict(&program).map(|()| {
                // What libraries have opened in this process is not the other's either.
                CloseFdsBuilder::new().cloexecfrom(3);
                command.spawn()
            });
            // Whoever does not wait any more drops the process, which ends it.
            let _given_up = to.send(started);
        };
        thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(start)
            .map_err(SandboxError::Thread)?;
        from.await.unwrap_or_else(|_| {
            let died = io::Error::other("it panicked");
            Err(SandboxError::Thread(died))
        })
    }

    /// Restricts the calling thread, and all that it starts, for good.
    fn restrict(&self, program: &Path) -> Result<(), SandboxError> {
        self.restrict_files(program)?;
        self.restrict_calls()
    }

    fn restrict_files(&self, program: &Path) -> Result<(), SandboxError> {
        let (read, write) = (AccessFs::from_read(NEEDED), AccessFs::from_all(NEEDED));
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(write)?
            // Newer kernels keep more.
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::IoctlDev)?
            .scope(Scope::from_all(ABI::V6))?;
        let ruleset = match self.network {
            NetworkAccess::Denied => ruleset.handle_access(AccessNet::from_all(ABI::V4))?,
            NetworkAccess::Allowed => ruleset,
        };
        let mut ruleset = ruleset
            .create()?
            .add_rules(path_beneath_rules(SYSTEM, read))?
            .add_rules(path_beneath_rules([SINK], AccessFs::from_file(NEEDED)))?;
        let reads = self.reads.iter().map(PathBuf::as_path).chain([program]);
        let writes = self.writes.iter().map(PathBuf::as_path);
        let own = reads.map(|path| (path, read));
        for (path, access) in own.chain(writes.map(|path| (path, write))) {
            let found = PathFd::new(path).map_err(|error| SandboxError::Path {
                path: path.to_owned(),
                error: error.to_string(),
            })?;
            let access = if path.is_dir() {
                access
            } else {
                access & AccessFs::from_file(NEEDED)
            };
            ruleset = ruleset.add_rule(PathBeneath::new(found, access))?;
        }
        ruleset.restrict_self()?;
        Ok(())
    }

    fn restrict_calls(&self) -> Result<(), SandboxError> {
        let calls = |error: &dyn std::fmt::Display| SandboxError::Calls(error.to_string());
        let mut refused = BTreeMap::new();
        for call in FORBIDDEN {
            refused.insert(*call, Vec::new());
        }
        match self.network {
            // Of every family: the runtime's own machine has listeners of its own too.
            NetworkAccess::Denied => {
                refused.insert(libc::SYS_socket, Vec::new());
            }
            NetworkAccess::Allowed => {}
        }
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| calls(&error))?;
        let filter = SeccompFilter::new(
            refused,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM as u32),
            arch,
        );
        let program: BpfProgram = filter
            .and_then(TryInto::try_into)
            .map_err(|error| calls(&error))?;
        seccompiler::apply_filter(&program).map_err(|error| calls(&error))
    }
}
