//! A message bus of a test's own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::UnixListener;

/// A place for a bus. The bus in it ends with it.
pub(crate) struct Bus {
    directory: TempDir,
    daemon: Option<Child>,
}

impl Bus {
    /// A bus that runs.
    pub(crate) fn start() -> Self {
        let mut bus = Self::absent();
        bus.run();
        bus
    }

    /// A place where no bus runs yet.
    pub(crate) fn absent() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("services")).unwrap();
        Self {
            directory,
            daemon: None,
        }
    }

    /// Its address.
    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", self.directory.path().join("bus").display())
    }

    /// A file that whoever is started by this bus would make.
    pub(crate) fn marker(&self) -> PathBuf {
        self.directory.path().join("started")
    }

    /// Has the bus know how to start `name`; it has to be done before the bus runs.
    pub(crate) fn can_start(&self, name: &str) {
        let service = self
            .directory
            .path()
            .join(format!("services/{name}.service"));
        let marker = self.marker();
        let text = format!(
            "[D-BUS Service]\nName={name}\nExec=/bin/sh -c 'touch {}; exit 1'\n",
            marker.display()
        );
        fs::write(service, text).unwrap();
    }

    /// Listens in place of the bus, which may run once this is dropped.
    pub(crate) fn listen_instead(&self) -> UnixListener {
        UnixListener::bind(self.directory.path().join("bus")).unwrap()
    }

    /// Runs the bus, and waits until it listens.
    pub(crate) fn run(&mut self) {
        let directory = self.directory.path().display();
        let address = self.address();
        let config = self.directory.path().join("config");
        // Everybody may do everything, also answer what another was asked.
        let text = format!(
            "<busconfig><type>session</type><listen>{address}</listen>\
             <auth>EXTERNAL</auth><servicedir>{directory}/services</servicedir>\
             <policy context='default'><allow user='*'/><allow own='*'/>\
             <allow send_destination='*' send_requested_reply='false'/>\
             <allow receive_sender='*' receive_requested_reply='false'/>\
             </policy></busconfig>"
        );
        fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address"])
            .stdout(Stdio::piped())
            // It cannot raise its limit of files everywhere, and says so.
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is needed");
        let stdout = daemon.stdout.take().unwrap();
        self.daemon = Some(daemon);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.starts_with(&address), "the bus listens at {line:?}");
    }

    /// Ends the bus.
    pub(crate) fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        let pid = Pid::from_raw(daemon.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        daemon.wait().unwrap();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop();
    }
}
