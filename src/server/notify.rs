//! Tells the service manager how the process is (`sd_notify(3)`): a datagram with lines `NAME=value` to the socket that
//! `NOTIFY_SOCKET` names. Without one, as outside of systemd, nothing is done.
//!
//! The watchdog's pings come from a thread of their own, but only while the threads that serve requests get on: what is
//! alive and serves nobody is to be restarted.

use std::env;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::proxy::Shared;

/// How often it is looked whether the listeners are there.
const START_POLL: Duration = Duration::from_millis(20);
/// The watchdog waits for a whole period; pings come in this part of it.
const PINGS_PER_PERIOD: u32 = 3;

/// Sends `state` to the service manager, if there is one.
pub fn tell(state: &str) {
    if let Some(Err(error)) = env::var_os("NOTIFY_SOCKET").map(|path| send(path.as_encoded_bytes(), state)) {
        log::warn!("cannot tell the service manager: {error}");
    }
}

fn send(path: &[u8], state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold anything up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address(path)?).map(|_| ())
}

/// A path, or with `@` a name in the abstract namespace.
fn address(path: &[u8]) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix(b"@") {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    use std::os::unix::ffi::OsStrExt;
    SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))
}

/// How often the service manager wants a ping: `WATCHDOG_USEC`, if it is meant for this process (`sd_watchdog_enabled(3)`).
pub fn watchdog() -> Option<Duration> {
    asked_of(|name| env::var(name).ok(), std::process::id())
}

/// The variables that a process which takes the place of this one must not inherit. What is asked of this process is then
/// asked of that one, whose id nobody knows before it runs, so none is named; what is asked of another stays with that.
pub fn not_inherited() -> &'static [&'static str] {
    match watchdog() {
        Some(_) => &["WATCHDOG_PID"],
        None => &["WATCHDOG_PID", "WATCHDOG_USEC"],
    }
}

fn asked_of(variable: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let period = variable("WATCHDOG_USEC")?.parse().ok().filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(period))
}

/// Tells when all listeners take connections, and from then on that requests are served.
pub fn start(shared: &Arc<Shared>) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let shared = shared.clone();
    let spawned = thread::Builder::new().name("notify".to_owned()).spawn(move || {
        while !shared.listening() {
            if shared.failure().is_some() || shared.draining() {
                return;
            }
            thread::sleep(START_POLL);
        }
        let listeners = shared.snapshot().config.listeners.len();
        tell(&format!("READY=1\nSTATUS=Serving on {listeners} listeners"));
        if let Some(period) = watchdog() {
            let mut pulse = Pulse::default();
            loop {
                if pulse.beats(shared.lag.notes()) || shared.draining() {
                    tell("WATCHDOG=1");
                }
                thread::sleep(period / PINGS_PER_PERIOD);
            }
        }
    });
    if let Err(error) = spawned {
        log::error!("no thread to tell the service manager: {error}");
    }
}

/// Whether something goes on that is counted.
#[derive(Debug, Default)]
struct Pulse(Option<usize>);

impl Pulse {
    /// Whether the count has changed since it was last asked for; the first is a beat.
    fn beats(&mut self, count: usize) -> bool {
        self.0.replace(count) != Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_stands_still_is_no_beat() {
        let mut pulse = Pulse::default();
        assert_eq!([1, 2, 2, 2, 3].map(|count| pulse.beats(count)), [true, true, false, false, true]);
    }

    #[test]
    fn the_watchdog_is_for_whom_it_is_meant() {
        let asked = |pid: Option<&'static str>, usec: &'static str| {
            let variable = move |name: &str| match name {
                "WATCHDOG_PID" => pid.map(str::to_owned),
                _ => Some(usec.to_owned()),
            };
            asked_of(variable, 7)
        };
        assert_eq!(asked(None, "3000000"), Some(Duration::from_secs(3)));
        assert_eq!(asked(Some("7"), "1"), Some(Duration::from_micros(1)));
        assert_eq!([asked(Some("6"), "1"), asked(Some("x"), "1"), asked(None, "0"), asked(None, "x")], [None; 4]);
    }

    #[test]
    fn a_path_and_an_abstract_name_are_reached() {
        let name = format!("hive-gateway-notify-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let by_path = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str().as_encoded_bytes(), "READY=1").unwrap();
        let by_name = UnixDatagram::bind_addr(&address(format!("@{name}").as_bytes()).unwrap()).unwrap();
        send(format!("@{name}").as_bytes(), "STOPPING=1").unwrap();
        let mut bytes = [0; 32];
        let read = by_path.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"READY=1");
        let read = by_name.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"STOPPING=1");
        std::fs::remove_file(path).unwrap();
        assert!(send(b"/nowhere/to/be/found", "READY=1").is_err());
    }
}
