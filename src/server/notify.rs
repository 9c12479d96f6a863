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
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::proxy::Shared;

/// How often it is looked whether the listeners are there.
const START_POLL: Duration = Duration::from_millis(20);
/// The watchdog waits for a whole period; pings come in this part of it.
const PINGS_PER_PERIOD: u32 = 3;
/// How long the threads may stand still where no watchdog is asked for; that of the package's unit.
const PATIENCE: Duration = Duration::from_secs(15);

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
                if pulse.beats(shared.lag.notes(), shared.clock.now()) || shared.draining() {
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

/// Watches something that is counted and goes on all the time.
#[derive(Debug, Default)]
struct Pulse(Option<(usize, Instant)>);

impl Pulse {
    /// For how long the count is known to have stood still; zero if it has changed since it was last looked at.
    fn stands_still(&mut self, count: usize, now: Instant) -> Duration {
        match self.0 {
            Some((seen, since)) if seen == count => now.saturating_duration_since(since),
            _ => {
                self.0 = Some((count, now));
                Duration::ZERO
            }
        }
    }

    fn beats(&mut self, count: usize, now: Instant) -> bool {
        self.stands_still(count, now).is_zero()
    }
}

/// Whether the threads that serve requests get on, for whoever asks now and then.
pub struct Liveness {
    pulse: Mutex<Pulse>,
    /// They may stand still for so long.
    patience: Duration,
}

impl Liveness {
    /// As patient as the watchdog.
    pub fn of_this_process() -> Self {
        Self { pulse: Mutex::default(), patience: watchdog().unwrap_or(PATIENCE) }
    }

    /// Since the last who asked, or all the time before and after.
    pub fn get_on(&self, shared: &Shared) -> bool {
        let still = self.pulse.lock().stands_still(shared.lag.notes(), shared.clock.now());
        // They begin with the listeners, and end with them.
        still < self.patience || !shared.listening() || shared.draining()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_stands_still_is_no_beat() {
        let mut pulse = Pulse::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let looks = [(1, 0), (2, 1), (2, 3), (2, 6), (3, 7)];
        assert_eq!(looks.map(|(count, now)| pulse.stands_still(count, at(now)).as_secs()), [0, 0, 2, 5, 0]);
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
