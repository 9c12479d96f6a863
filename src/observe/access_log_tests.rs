use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::SystemTime;

use super::*;

const LONG: Duration = Duration::from_secs(20);

/// A directory of this test's own, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("hive-gateway-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open_log(path: &Path, metrics: &Metrics) -> Arc<AccessLog> {
    AccessLog::open(&AccessLogTarget::File(path.to_owned()).into(), Clock::System, metrics).unwrap()
}

fn record<'a>(listener: &'a str, path: &'a [u8]) -> AccessRecord<'a> {
    AccessRecord { path, status: 200, ..AccessRecord::new(SystemTime::UNIX_EPOCH, listener, [127, 0, 0, 1].into()) }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Waits for what another thread does.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Clock::System.now() + LONG;
    while !condition() {
        assert!(Clock::System.now() < deadline, "never happened: {what}");
        thread::yield_now();
    }
}

#[test]
fn lines_of_many_threads_stay_whole_and_in_order_per_thread() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let log = open_log(&dir.file("log"), &metrics);
    thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let log = &log;
            scope.spawn(move || {
                for i in 0..3000 {
                    log.record(&record(name, format!("/{i}").as_bytes()));
                }
            });
        }
    });
    assert!(log.close(LONG));
    let written = lines(&dir.file("log"));
    assert_eq!(written.len(), 12_000);
    for name in ["a", "b", "c", "d"] {
        let paths: Vec<&str> =
            written.iter().filter(|l| l["listener"] == name).map(|l| l["path"].as_str().unwrap()).collect();
        assert!(paths.iter().enumerate().all(|(i, p)| *p == format!("/{i}")));
    }
    assert_eq!((metrics.access_log_lines.get(), metrics.access_log_dropped.get()), (12_000, 0));
}

#[test]
fn a_line_is_in_the_file_without_a_close() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let log = open_log(&dir.file("log"), &metrics);
    for count in 1..=3 {
        log.record(&record("l", b"/"));
        until("the line is written", || lines(&dir.file("log")).len() == count);
    }
}

#[test]
fn the_file_is_appended_to_and_others_can_not_read_it() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    for _ in 0..2 {
        let log = open_log(&dir.file("log"), &metrics);
        log.record(&record("l", b"/"));
        assert!(log.close(LONG));
    }
    assert_eq!(lines(&dir.file("log")).len(), 2);
    let mode = fs::metadata(dir.file("log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o137, 0, "{mode:o}");
}

#[test]
fn a_fifo_that_nobody_reads_never_holds_up_a_request() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let fifo = dir.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let log = open_log(&fifo, &metrics);
    let path = vec![b'x'; 2000];
    let (mut longest, mut records) = (Duration::ZERO, 0u64);
    // The pipe takes 64 KiB, the writer's buffer and the queue 8 MiB each; the rest has nowhere to go.
    while metrics.access_log_dropped.get() < 5000 {
        let started = Clock::System.now();
        log.record(&record("l", &path));
        longest = longest.max(started.elapsed());
        records += 1;
        assert!(records < 100_000, "nothing was dropped");
    }
    // A record takes microseconds; a scheduler's hiccup is allowed for, a wait for the reader is not.
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(!log.close(Duration::from_millis(50)), "the writer is stuck, and closing does not wait for it");

    // A reader comes: what was queued arrives whole.
    let reader = File::open(&fifo).unwrap();
    let read = io::BufRead::lines(io::BufReader::new(reader));
    let mut whole = 0;
    for line in read.take(usize::try_from(records - metrics.access_log_dropped.get()).unwrap()) {
        serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap();
        whole += 1;
    }
    assert!(log.close(LONG));
    assert_eq!(whole + metrics.access_log_dropped.get(), records);
    assert_eq!(metrics.access_log_lines.get(), whole);
}

#[test]
fn a_full_disk_costs_lines_and_is_counted() {
    let metrics = Metrics::new();
    let log = open_log(Path::new("/dev/full"), &metrics);
    log.record(&record("l", b"/"));
    log.record(&record("l", b"/"));
    assert!(log.close(LONG));
    assert_eq!((metrics.access_log_lines.get(), metrics.access_log_dropped.get()), (0, 2));
    assert!(metrics.access_log_write_errors.get() >= 1);
    log.record(&record("l", b"/"));
    assert_eq!(metrics.access_log_dropped.get(), 3);
}

#[test]
fn after_a_reopen_lines_go_to_the_new_file() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let path = dir.file("log");
    let log = open_log(&path, &metrics);
    log.record(&record("l", b"/before"));
    until("the line is written", || lines(&path).len() == 1);
    fs::rename(&path, dir.file("log.1")).unwrap();
    log.reopen();
    until("the file is made again", || path.exists());
    log.record(&record("l", b"/after"));
    assert!(log.close(LONG));
    assert_eq!(lines(&dir.file("log.1"))[0]["path"], "/before");
    assert_eq!(lines(&path)[0]["path"], "/after");
}

#[test]
fn while_the_new_file_can_not_be_opened_lines_go_to_the_old_one() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let (file, away) = (dir.file("log"), dir.file("log.1"));
    let log = open_log(&file, &metrics);
    log.record(&record("l", b"/one"));
    until("it is written", || lines(&file).len() == 1);
    fs::rename(&file, &away).unwrap();
    // Nobody, not even root, can open that for writing.
    fs::create_dir(&file).unwrap();
    log.reopen();
    log.record(&record("l", b"/two"));
    until("the old file has it", || lines(&away).len() == 2);
    assert!(metrics.access_log_write_errors.get() >= 1, "it is counted");
    fs::remove_dir(&file).unwrap();
    log.record(&record("l", b"/three"));
    until("the new file is there", || file.exists() && lines(&file).len() == 1);
    assert!(log.close(LONG));
    assert_eq!((lines(&away).len(), metrics.access_log_dropped.get()), (2, 0));
}

#[test]
fn a_file_that_can_not_be_opened_is_named() {
    let target = AccessLogTarget::File("/nowhere/at/all.log".into());
    let error = AccessLog::open(&target.into(), Clock::System, &Metrics::new()).err().unwrap();
    assert!(error.to_string().contains("/nowhere/at/all.log"), "{error}");
}

#[test]
fn a_log_that_is_off_takes_records_and_counts_nothing() {
    let metrics = Metrics::new();
    let log = AccessLog::open(&AccessLogTarget::Off.into(), Clock::System, &metrics).unwrap();
    log.record(&record("l", b"/"));
    assert!(!log.is_on() && log.close(Duration::ZERO));
    assert_eq!((metrics.access_log_lines.get(), metrics.access_log_dropped.get()), (0, 0));
}

/// A disk that is full after some bytes, and later has room again.
struct Disk {
    room: usize,
    written: Vec<u8>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = bytes.len().min(self.room);
        self.written.extend_from_slice(&bytes[..count]);
        self.room -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_cut_by_a_full_disk_does_not_swallow_the_next() {
    let mut disk = Disk { room: 6, written: Vec::new() };
    let (mut torn, mut count) = (false, 0);
    assert!(write_lines(&mut disk, b"one\ntwo\nthree\n", &mut torn, &mut count).is_err());
    assert_eq!((torn, count), (true, 1));
    assert!(write_lines(&mut disk, b"four\n", &mut torn, &mut count).is_err());
    disk.room = 100;
    write_lines(&mut disk, b"five\n", &mut torn, &mut count).unwrap();
    assert_eq!((torn, count), (false, 2));
    assert_eq!(disk.written, b"one\ntw\nfive\n");
}

#[test]
fn good_requests_are_sampled_evenly_and_others_are_always_there() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let target = AccessLogTarget::File(dir.file("log"));
    let settings = LogSettings { sample: Percent(100), ..target.into() };
    let log = AccessLog::open(&settings, Clock::System, &metrics).unwrap();
    for _ in 0..1000 {
        log.record(&record("good", b"/"));
        log.record(&AccessRecord { status: 404, ..record("bad", b"/") });
        log.record(&AccessRecord { error: Some("cut"), ..record("cut", b"/") });
        log.record(&AccessRecord { rate_limit: Some("a"), ..record("beyond", b"/") });
    }
    assert!(log.close(LONG));
    let written = lines(&dir.file("log"));
    let count = |listener: &str| written.iter().filter(|l| l["listener"] == listener).count();
    assert!((95..=105).contains(&count("good")), "{} of 1000", count("good"));
    assert_eq!(["bad", "cut", "beyond"].map(count), [1000; 3]);
    assert_eq!(metrics.access_log_dropped.get(), 0, "what is not sampled is not lost");
}

#[test]
fn a_file_that_has_grown_is_moved_away_and_the_oldest_goes() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let rotation = Some(Rotation { bytes: 20_000, keep: 2 });
    let settings = LogSettings { rotation, ..AccessLogTarget::File(dir.file("log")).into() };
    // What is there already counts.
    fs::write(dir.file("log"), vec![b'\n'; 19_990]).unwrap();
    let log = AccessLog::open(&settings, Clock::System, &metrics).unwrap();
    for i in 0..500 {
        log.record(&record("l", format!("/{i}").as_bytes()));
    }
    assert!(log.close(LONG));
    let mut files: Vec<_> =
        fs::read_dir(&dir.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["log", "log.1", "log.2"]);
    let mut paths = Vec::new();
    for file in ["log.2", "log.1", "log"] {
        assert!(fs::metadata(dir.file(file)).unwrap().len() <= 20_000);
        paths.extend(lines(&dir.file(file)).iter().map(|l| l["path"].as_str().unwrap().to_owned()));
    }
    let expected: Vec<_> = (500 - paths.len()..500).map(|i| format!("/{i}")).collect();
    assert_eq!(paths, expected, "no line is lost or twice but those of the oldest files");
    assert_eq!((metrics.access_log_lines.get(), metrics.access_log_dropped.get()), (500, 0));
}

#[test]
fn a_file_that_can_not_be_moved_away_is_written_on() {
    let (dir, metrics) = (Dir::new(), Metrics::new());
    let rotation = Some(Rotation { bytes: 1000, keep: 1 });
    let settings = LogSettings { rotation, ..AccessLogTarget::File(dir.file("log")).into() };
    // A directory that is not empty: nothing can be renamed to it.
    fs::create_dir_all(dir.file("log.1").join("x")).unwrap();
    let log = AccessLog::open(&settings, Clock::System, &metrics).unwrap();
    for _ in 0..100 {
        log.record(&record("l", b"/"));
    }
    assert!(log.close(LONG));
    assert_eq!(lines(&dir.file("log")).len(), 100);
    assert!(metrics.access_log_rotate_errors.get() >= 1);
    assert_eq!((metrics.access_log_lines.get(), metrics.access_log_dropped.get()), (100, 0));
    assert_eq!(metrics.access_log_write_errors.get(), 0, "no write has failed");
}
