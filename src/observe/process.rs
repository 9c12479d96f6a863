//! What the process takes of the machine, under the names that Prometheus' client libraries agree on, and what the
//! allocator holds. Read when the metrics are asked for.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Counter, Gauge, Registry};

use super::definitions::{Definition, Kind};
use super::register::{opts, register};

macro_rules! definition {
    ($kind:ident, $name:literal, $help:literal) => {
        Definition { name: $name, help: $help, labels: &[], kind: Kind::$kind }
    };
}

const CPU: Definition =
    definition!(Counter, "process_cpu_seconds_total", "Processor time of the process, user and system.");
const RESIDENT: Definition = definition!(Gauge, "process_resident_memory_bytes", "Memory that is in RAM.");
const VIRTUAL: Definition = definition!(Gauge, "process_virtual_memory_bytes", "Address space.");
const OPEN_FDS: Definition = definition!(Gauge, "process_open_fds", "Open file descriptors.");
const MAX_FDS: Definition = definition!(Gauge, "process_max_fds", "Most file descriptors that may be open.");
const START: Definition =
    definition!(Gauge, "process_start_time_seconds", "When the process began, seconds since 1970.");
const THREADS: Definition = definition!(Gauge, "process_threads", "Threads of the process.");
const ALLOCATED: Definition = definition!(
    Gauge,
    "hive_gateway_allocator_committed_bytes",
    "Memory that the allocator (mimalloc) has taken of the system and not given back."
);
const ALLOCATED_PEAK: Definition =
    definition!(Gauge, "hive_gateway_allocator_committed_peak_bytes", "The most that it ever was.");

/// What every process has, and the allocator.
pub(super) const DEFINITIONS: &[Definition] =
    &[CPU, RESIDENT, VIRTUAL, OPEN_FDS, MAX_FDS, START, THREADS, ALLOCATED, ALLOCATED_PEAK];

/// The process in numbers. Where `/proc` can't be read the numbers stay as they were.
pub(super) struct ProcessMetrics {
    cpu: Counter,
    resident: Gauge,
    virtual_memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    allocated: Gauge,
    allocated_peak: Gauge,
}

impl ProcessMetrics {
    /// For a process that began at `began`.
    pub(super) fn new(registry: &Registry, began: SystemTime) -> Self {
        let gauge = |d| register(registry, Gauge::with_opts(opts(d)));
        let start = gauge(&START);
        // Close to the start of the process. The kernel's own figure counts from the start of the machine, which a service
        // manager may hide (`ProcSubset=pid` of systemd).
        start.set(began.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
        Self {
            cpu: register(registry, Counter::with_opts(opts(&CPU))),
            resident: gauge(&RESIDENT),
            virtual_memory: gauge(&VIRTUAL),
            open_fds: gauge(&OPEN_FDS),
            max_fds: gauge(&MAX_FDS),
            threads: gauge(&THREADS),
            allocated: gauge(&ALLOCATED),
            allocated_peak: gauge(&ALLOCATED_PEAK),
        }
    }

    /// Brings all of it up to date.
    pub(super) fn update(&self) {
        if let Some(stat) = Stat::read() {
            // Two that ask at once may both add the same: never less than nothing is added.
            self.cpu.inc_by((stat.cpu_seconds - self.cpu.get()).max(0.0));
            self.resident.set(stat.resident_bytes);
            self.virtual_memory.set(stat.virtual_bytes);
            self.threads.set(stat.threads);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // The one that reads the directory is among them.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
            self.max_fds.set(soft as f64);
        }
        let (now, peak) = committed();
        self.allocated.set(now as f64);
        self.allocated_peak.set(peak as f64);
    }
}

/// Bytes that mimalloc has committed now, and at most: two counters that it keeps anyway.
fn committed() -> (usize, usize) {
    let mut out = [0usize; 8];
    let [elapsed, user, system, rss, rss_peak, commit, commit_peak, faults] = &mut out;
    // SAFETY: writes one number to each of the pointers, which are valid.
    unsafe { libmimalloc_sys::mi_process_info(elapsed, user, system, rss, rss_peak, commit, commit_peak, faults) };
    (*commit, *commit_peak)
}

/// `/proc/self/stat` in units that people use (proc_pid_stat(5)).
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let sysconf = |name| nix::unistd::sysconf(name).ok().flatten().map(|n| n as f64);
        let ticks = sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
        let page = sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?, ticks, page)
    }

    fn parse(text: &str, ticks: f64, page: f64) -> Option<Self> {
        // The command's name may hold spaces and parentheses, so the fields are counted from its end: the third is first.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.trim().parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_command_of_any_name_is_read_right() {
        let text = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16 9 0 1000 4096 3 18 19\n";
        let stat = Stat::parse(text, 100.0, 4096.0).unwrap();
        let read = (stat.cpu_seconds, stat.threads, stat.virtual_bytes, stat.resident_bytes);
        assert_eq!(read, (2.0, 9.0, 4096.0, 12288.0));
        assert!(Stat::parse("7 (a) S 1", 100.0, 4096.0).is_none());
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let registry = Registry::new();
        let metrics = ProcessMetrics::new(&registry, UNIX_EPOCH + Duration::from_millis(1_500));
        metrics.update();
        metrics.update();
        assert!(metrics.resident.get() > 1e6 && metrics.virtual_memory.get() >= metrics.resident.get());
        assert!(metrics.open_fds.get() >= 3.0 && metrics.max_fds.get() >= metrics.open_fds.get());
        assert!(metrics.threads.get() >= 1.0);
        // Read nowhere, so that it can be hidden nowhere.
        let start = registry.gather().into_iter().find(|family| family.name() == START.name).unwrap();
        assert_eq!(start.get_metric()[0].get_gauge().get_value(), 1.5);
    }
}
