//! libmodsecurity: its rules, its threads, and the only calls into it.
//!
//! What its threads share and what not (libmodsecurity 3.0.9, read from its source): evaluating a request only reads the
//! rules, so all threads use one `RulesSet`. A `ModSecurity` holds the collections that outlive a request, and reads them
//! without a lock, so each thread has one of its own and keeps it for ever: its destructor cleans up what all share.
//!
//! Its `SecPcreMatchLimit` is read and ignored, and an expression may go on for ten million steps, which with the core
//! rules and four kilobytes of `<` is eight seconds. So its searches go through shim.cc, which limits their steps and the
//! time of all, and tells if one was ended: a request of which it is not known whether it matches does not pass.

use std::ffi::{CStr, CString, c_char, c_int, c_longlong, c_uint, c_void};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::queue::Queue;
use super::skips::Skips;
use super::{Fault, Match, Request, SERVER, Settings, all_files, data_beside, epilogue, prelude};
use crate::files::open_regular;

/// Longest rule file or file of words, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The gateway's own rule: an expression was ended before it was known whether it matches.
const STEPS_EXCEEDED: i64 = 8_800_005;
/// The gateway's own rule: more values than are looked at. The prelude has it too, for what is not XML.
const TOO_MANY_VALUES: i64 = 8_800_002;
/// The gateway's own rule: an XML body that can grow while it is read.
const DOCUMENT_TYPE: i64 = 8_800_007;
/// The gateway's own rule: a body in which the rules would not know the letters.
const FOREIGN_CODING: i64 = 8_800_008;
/// Matches that are kept of a request.
const MATCHES_MAX: usize = 16;
/// Longest text of a match, in bytes.
const MESSAGE_BYTES_MAX: usize = 256;
/// Longest words of the engine about wrong rules, in bytes.
const ERROR_BYTES_MAX: usize = 1024;
/// How far the threads stand behind those that serve requests (`nice`).
const NICE: c_int = 5;

#[repr(C)]
struct Text {
    bytes: *const u8,
    length: usize,
}

impl Text {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.as_ptr(), length: bytes.len() }
    }
}

#[repr(C)]
struct RawHeader {
    name: Text,
    value: Text,
}

/// Everything in it is borrowed for the call.
#[repr(C)]
struct RawRequest {
    client: *const c_char,
    client_port: c_int,
    server: *const c_char,
    server_port: c_int,
    method: *const c_char,
    uri: *const c_char,
    version: *const c_char,
    headers: *const RawHeader,
    header_count: usize,
    body: Text,
}

type OnMatch = extern "C" fn(*mut c_void, c_longlong, c_int, *const c_char, usize);

// shim.cc: no exception comes out of any of them.
unsafe extern "C" {
    fn hive_waf_worker_new() -> *mut c_void;
    fn hive_waf_rules_new() -> *mut c_void;
    fn hive_waf_rules_add(
        rules: *mut c_void,
        file: *const c_char,
        text: *const c_char,
        error: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn hive_waf_rules_free(rules: *mut c_void);
    fn hive_waf_check(
        worker: *mut c_void,
        rules: *mut c_void,
        request: *const RawRequest,
        budget_ms: c_uint,
        on_match: OnMatch,
        data: *mut c_void,
        status: *mut c_int,
        score: *mut c_int,
    ) -> c_int;
}

/// A `RulesSet` that is whole: nothing is added any more.
pub struct Rules {
    set: NonNull<c_void>,
    /// Of all that it was made of.
    digest: [u8; 32],
}

// SAFETY: once loaded, a set is only read, by any thread (see the head of this file); it is freed by whoever holds it last.
unsafe impl Send for Rules {}
// SAFETY: as above.
unsafe impl Sync for Rules {}

impl Drop for Rules {
    fn drop(&mut self) {
        // SAFETY: made by hive_waf_rules_new, freed once. Who evaluates with it holds an Arc of it.
        unsafe { hive_waf_rules_free(self.set.as_ptr()) }
    }
}

/// Rules that are in use, so that a reload that changes none of them reads none again. Also a turn: making rules uses
/// parts of the engine that are made once.
static IN_USE: Mutex<Vec<Weak<Rules>>> = Mutex::new(Vec::new());

impl Rules {
    /// Reads the files of the settings, or finds the same ones in use.
    pub fn load(settings: &Settings) -> Result<Arc<Self>, Fault> {
        let (texts, digest) = read_all(settings)?;
        let mut in_use = IN_USE.lock();
        in_use.retain(|rules| rules.strong_count() > 0);
        if let Some(same) = in_use.iter().filter_map(Weak::upgrade).find(|rules| rules.digest == digest) {
            return Ok(same);
        }
        // Before the first rules: the engine's own libraries are set up by it.
        if THREADS.is_none() {
            return Err(Fault { entry: None, message: "libmodsecurity can't be started".into() });
        }
        // SAFETY: no argument.
        let set = NonNull::new(unsafe { hive_waf_rules_new() });
        let set = set.ok_or_else(|| Fault { entry: None, message: "libmodsecurity makes no rules".into() })?;
        let rules = Self { set, digest };
        for (entry, name, text) in &texts {
            rules.add(name, text).map_err(|message| Fault { entry: *entry, message })?;
        }
        let rules = Arc::new(rules);
        in_use.push(Arc::downgrade(&rules));
        Ok(rules)
    }

    fn add(&self, name: &CStr, text: &CStr) -> Result<(), String> {
        let mut error = [0; ERROR_BYTES_MAX];
        // SAFETY: the set is ours alone until it is whole; texts end in NUL and outlive the call, which keeps copies; the
        // error's buffer is as long as is said and is ended with NUL.
        let added = unsafe {
            hive_waf_rules_add(self.set.as_ptr(), name.as_ptr(), text.as_ptr(), error.as_mut_ptr(), error.len())
        };
        if added {
            return Ok(());
        }
        // SAFETY: the buffer was zero, and what was written into it ends in NUL.
        let said = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy();
        Err(wording(&name.to_string_lossy(), &said))
    }
}

/// The engine's words about a file in one line. Some have the file's name, some an address in memory in its place.
fn wording(name: &str, said: &str) -> String {
    let words: Vec<_> = said.split_whitespace().filter(|w| !w.starts_with("0x")).collect();
    let said = words.join(" ").replace("File: at line", "At line");
    if said.contains(name) { said } else { format!("{name}: {said}") }
}

type Texts = Vec<(Option<usize>, CString, CString)>;

/// The gateway's own rules and those of the files, and a digest of them and of the words beside them.
fn read_all(settings: &Settings) -> Result<(Texts, [u8; 32]), Fault> {
    let mut hash = openssl::sha::Sha256::new();
    let mut texts = Texts::new();
    let mut skips = Skips::default();
    let mut add = |entry: Option<usize>, name: &str, text: String| {
        // Lengths first: no two lists of texts make one digest.
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
        let nul = |_| Fault { entry, message: format!("{name}: a NUL byte in it") };
        texts.push((entry, CString::new(name).map_err(nul)?, CString::new(text).map_err(nul)?));
        Ok(())
    };
    add(None, "the gateway's own rules", prelude())?;
    for (entry, file) in all_files(settings) {
        let text = read(file).and_then(|bytes| prepared(file, &said(file, bytes)?));
        let text = text.map_err(|message| Fault { entry: Some(entry), message })?;
        skips.read(entry, file, &text);
        add(Some(entry), &file.to_string_lossy(), text)?;
    }
    skips.end()?;
    add(None, "the gateway's own rules", epilogue(settings))?;
    for file in data_beside(all_files(settings).map(|(_, file)| file)) {
        let bytes =
            read(&file).and_then(|bytes| said(&file, bytes)).map_err(|message| Fault { entry: None, message })?;
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok((texts, hash.finish()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |e: std::io::Error| format!("{}: {e}", path.display());
    let file: File = open_regular(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{}: longer than {} MiB", path.display(), FILE_BYTES_MAX >> 20));
    }
    Ok(bytes)
}

/// A file that says something. One that is empty is being written, or was when the disk was full: that switches no rule off.
fn said(file: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    match bytes.trim_ascii().is_empty() {
        true => Err(format!("{}: the file is empty; write a comment in it if nothing is to be there", file.display())),
        false => Ok(bytes),
    }
}

/// In which line a directive begins that has no end: a quotation mark is missing, or what follows a backslash. The engine
/// takes such for a rule that never matches.
fn unfinished(text: &str) -> Option<usize> {
    let (mut begun, mut open, mut goes_on) = (0, false, false);
    for (i, line) in text.lines().enumerate() {
        if !goes_on {
            if line.trim_start().starts_with('#') {
                continue;
            }
            (begun, open) = (i + 1, false);
        }
        let mut escaped = false;
        for c in line.trim_end().chars() {
            open ^= c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
        }
        goes_on = escaped;
        if open && !goes_on {
            return Some(begun);
        }
    }
    goes_on.then_some(begun)
}

/// The text of a rule file that brings in no other, with the attributes of XML wherever its text is looked at, which version 3
/// of the core rules forgot, and with comments and processing instructions, which some readers act on.
fn prepared(file: &Path, bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8", file.display()))?;
    for (i, line) in text.lines().enumerate() {
        let word = line.split_whitespace().next().unwrap_or_default();
        // Nobody would see it change.
        if word.eq_ignore_ascii_case("include") || word.eq_ignore_ascii_case("includeoptional") {
            let place = format!("{}:{}", file.display(), i + 1);
            return Err(format!("{place}: {word} is not followed; write the files, or their directory, under rules"));
        }
    }
    if let Some(line) = unfinished(text) {
        return Err(format!("{}:{line}: the directive that begins here has no end", file.display()));
    }
    Ok(text.replace("|XML:/* ", "|XML:/*|XML://@*|XML://comment()|XML://processing-instruction() "))
}

/// What the engine makes of a request.
pub struct Found {
    /// It may not pass.
    pub refused: bool,
    /// An expression took too many steps, so it is not known whether it may.
    pub unknown: bool,
    /// The sum of what matched.
    pub score: u32,
    /// The first of what matched.
    pub matches: Vec<Match>,
}

struct Job {
    rules: Arc<Rules>,
    request: Request,
    deadline: Instant,
    tell: oneshot::Sender<Option<Found>>,
}

/// A `ModSecurity` of one thread.
struct Worker(NonNull<c_void>);

// SAFETY: it is made in one thread and then used in one other alone.
unsafe impl Send for Worker {}

/// The threads, as many as there are processors, and the way to them. None if the engine can't be started.
static THREADS: LazyLock<Option<Arc<Queue<Job>>>> = LazyLock::new(|| {
    let queue = Arc::new(Queue::new());
    for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
        // SAFETY: no argument. One after the other: it sets up libraries that are not made for two at once.
        let worker = Worker(NonNull::new(unsafe { hive_waf_worker_new() })?);
        let jobs = queue.clone();
        thread::Builder::new().name("waf".into()).spawn(move || work(&worker, &jobs)).ok()?;
    }
    Some(queue)
});

/// Gives a request to the threads, which leave off at `deadline`. What is told is none if the engine failed; nothing is
/// told if too many wait, and its caller has most of them.
pub fn ask(rules: Arc<Rules>, mut request: Request, deadline: Instant) -> Option<oneshot::Receiver<Option<Found>>> {
    let (tell, told) = oneshot::channel();
    let (address, certificate) = (request.client.ip(), request.certificate.take());
    THREADS.as_ref()?.push(address, certificate, Job { rules, request, deadline, tell });
    Some(told)
}

fn work(worker: &Worker, jobs: &Queue<Job>) -> ! {
    // SAFETY: plain numbers; with 0 it is about this thread alone (Linux). If it fails the threads are as good as others.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    loop {
        let Job { rules, request, deadline, tell } = jobs.pop();
        // Who waits no longer need not be told.
        if !tell.is_closed() {
            let _ = tell.send(worker.check(&rules, &request, deadline));
        }
    }
}

extern "C" fn note(data: *mut c_void, rule: c_longlong, severity: c_int, message: *const c_char, length: usize) {
    // SAFETY: `check` passes a pointer to its own vector, and calls nothing else with it while the engine runs.
    let matches = unsafe { &mut *data.cast::<Vec<Match>>() };
    if matches.len() >= MATCHES_MAX || message.is_null() {
        return;
    }
    // SAFETY: the engine's own string, of this length, alive during the call.
    let message = unsafe { std::slice::from_raw_parts(message.cast::<u8>(), length.min(MESSAGE_BYTES_MAX)) };
    let severity = u32::try_from(severity).unwrap_or(0);
    matches.push(Match { rule, severity, message: message.to_vec() });
}

impl Worker {
    /// Runs both phases. None: the engine failed, or the request can't be told to it.
    fn check(&self, rules: &Rules, request: &Request, deadline: Instant) -> Option<Found> {
        static SERVER_TEXT: OnceLock<CString> = OnceLock::new();
        let server = SERVER_TEXT.get_or_init(|| CString::new(SERVER.ip().to_string()).unwrap_or_default());
        let client = CString::new(request.client.ip().to_string()).ok()?;
        let method = CString::new(request.method.as_str()).ok()?;
        let uri = CString::new(request.target.as_slice()).ok()?;
        let header = |name: &str, value: &[u8]| RawHeader { name: Text::of(name.as_bytes()), value: Text::of(value) };
        let mut headers: Vec<_> = request.headers.iter().map(|(n, v)| header(n.as_str(), v.as_bytes())).collect();
        if !request.headers.contains_key(http::header::HOST) {
            headers.push(header("host", request.host.as_bytes()));
        }
        let raw = RawRequest {
            client: client.as_ptr(),
            client_port: request.client.port().into(),
            server: server.as_ptr(),
            server_port: SERVER.port().into(),
            method: method.as_ptr(),
            uri: uri.as_ptr(),
            version: if request.http2 { c"2.0".as_ptr() } else { c"1.1".as_ptr() },
            headers: headers.as_ptr(),
            header_count: headers.len(),
            body: Text::of(&request.body),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let mut matches = Vec::<Match>::new();
        let (mut status, mut score) = (0, 0);
        // SAFETY: this thread alone uses the worker, the rules are whole and live as long as the Arc that the job holds;
        // the request's parts, the vector and the numbers outlive the call, which keeps nothing of them.
        let outcome = unsafe {
            hive_waf_check(
                self.0.as_ptr(),
                rules.set.as_ptr(),
                &raw,
                c_uint::try_from(left.as_millis()).unwrap_or(c_uint::MAX),
                note,
                (&raw mut matches).cast(),
                &mut status,
                &mut score,
            )
        };
        if outcome < 0 {
            return None;
        }
        let unseen = match outcome {
            2 => Some((STEPS_EXCEEDED, "An expression took too many steps at a value of the request")),
            3 => Some((DOCUMENT_TYPE, "An XML body with a document type definition")),
            4 => Some((TOO_MANY_VALUES, "Too many values in the request body")),
            5 => Some((
                FOREIGN_CODING,
                "A body in a coding without ASCII, such as UTF-16, or XML that does not begin as such",
            )),
            _ => None,
        };
        let unknown = unseen.is_some();
        if let Some((rule, message)) = unseen {
            matches.insert(0, Match { rule, severity: 2, message: message.into() });
        }
        Some(Found { refused: outcome == 1, unknown, score: u32::try_from(score).unwrap_or(0), matches })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_name_the_file() {
        let said = "Rules must have an ID. File: 0x55b7 at line: 1\n";
        assert_eq!(wording("/a.conf", said), "/a.conf: Rules must have an ID. At line: 1");
        let said = "Rules error. File: /a.conf. Line: 2. Column: 3. Unknown";
        assert_eq!(wording("/a.conf", said), said);
    }

    #[test]
    fn directives_have_an_end() {
        let whole = "SecRule ARGS \"@rx \\\"x\" \\\n  \"id:1,\\\n  pass\"\n# a \"comment\n\nSecRuleEngine On\n";
        assert_eq!(unfinished(whole), None);
        for (text, line) in [
            ("# x\nSecRule ARGS \"@rx y\" \"id:1,pass\n", 2),
            ("SecRule ARGS \"@rx y\" \\\n  \"id:1,\\\n  pass\n\nSecAction \"id:2\"", 1),
            ("SecAction \"id:2\"\nSecRule ARGS \"@rx y\" \\", 2),
        ] {
            assert_eq!(unfinished(text), Some(line), "{text}");
        }
    }

    #[test]
    fn files_bring_in_no_others() {
        let why = prepared(Path::new("f.conf"), b"# Include x\n  IncludeOptional /etc/x.conf\n").unwrap_err();
        assert!(why.starts_with("f.conf:2: IncludeOptional is not followed; write"), "{why}");
    }
}
