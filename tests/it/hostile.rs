//! Clients that mean harm: each kind is cut by its name, takes no memory to speak of, and leaves others what they had.

use std::net::TcpStream;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use foreign_types::ForeignTypeRef;
use openssl::ssl::SslRef;

use crate::support::client::{Connection, small_tcp};
use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::raw_h2::{self, RawH2, frame};
use crate::support::wait_until;

const GET: &[u8] = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const CLOSED: &str = "hive_gateway_connections_closed_total";
/// Setting that says how much may be sent on a stream at first (RFC 9113, section 6.5.2).
const INITIAL_WINDOW: u16 = 4;

fn start(limits: &str, timeouts: &str) -> (Gateway, Node) {
    let node = Node::start_with(|request, exchange| match request.target().as_str() {
        "/echo/long" => exchange.answer(200, "", &vec![b'x'; 16 << 20]),
        _ => exchange.answer(200, "", b"done"),
    });
    let mut setup = Setup::new(&[node.address]);
    setup.limits = limits.into();
    setup.timeouts = timeouts.into();
    setup.top = "access_log: off".into();
    (setup.start(), node)
}

fn raw(gateway: &Gateway, settings: &[(u16, u32)]) -> RawH2 {
    RawH2::connect(&gateway.client("alice"), gateway.address, settings).unwrap()
}

/// The client's next stream.
fn stream(n: u32) -> u32 {
    2 * n + 1
}

fn open(id: u32, path: &str) -> Vec<u8> {
    frame(raw_h2::HEADERS, raw_h2::END_HEADERS | raw_h2::END_STREAM, id, &raw_h2::request("GET", path))
}

/// A flood of one kind of frame, ten a write: `n` counts the frames.
fn frames_of(kind: &str, n: u32) -> Vec<u8> {
    let zeros = [0; 8];
    match kind {
        "rapid_reset" => {
            let id = stream(n);
            [open(id, "/echo"), frame(raw_h2::RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()
        }
        "settings_flood" => frame(raw_h2::SETTINGS, 0, 0, b""),
        "ping_flood" => frame(raw_h2::PING, 0, 0, &zeros),
        "priority_flood" => frame(raw_h2::PRIORITY, 0, stream(n % 50), &[0, 0, 0, 0, 16]),
        "window_update_flood" => frame(raw_h2::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        "unknown_frame_flood" => frame(0xfa, 0, 0, b""),
        "empty_data_flood" => {
            let data = frame(raw_h2::DATA, 0, 1, b"");
            let head = raw_h2::request("POST", "/echo");
            if n == 0 { [frame(raw_h2::HEADERS, raw_h2::END_HEADERS, 1, &head), data].concat() } else { data }
        }
        "continuation_flood" => {
            let part = raw_h2::block(&[("x", "y")]);
            match n {
                0 => frame(raw_h2::HEADERS, 0, 1, &raw_h2::request("GET", "/echo")),
                _ => frame(raw_h2::CONTINUATION, 0, 1, &part),
            }
        }
        other => panic!("no flood {other}"),
    }
}

const FRAME_FLOODS: [&str; 8] = [
    "rapid_reset",
    "settings_flood",
    "ping_flood",
    "priority_flood",
    "window_update_flood",
    "unknown_frame_flood",
    "empty_data_flood",
    "continuation_flood",
];

/// Floods a connection of its own until it is cut. How many frames were sent.
fn flood(gateway: &Gateway, kind: &str, most: u32) -> std::io::Result<u32> {
    let mut h2 = RawH2::connect(&gateway.client("alice"), gateway.address, &[])?;
    let writes = h2.flood(most / 10, |n| (n * 10..n * 10 + 10).flat_map(|n| frames_of(kind, n)).collect());
    Ok(writes * 10)
}

/// Connections cut for a flood; a limit of the codec's own may be quicker.
fn cuts(gateway: &Gateway, kind: &str) -> f64 {
    let cut = |reason| gateway.metric(CLOSED, &[("reason", reason)]);
    cut(kind) + cut("enhance_your_calm")
}

#[test]
fn floods_of_frames_are_cut_by_name_and_leave_no_memory() {
    let (gateway, node) = start("", "");
    for kind in FRAME_FLOODS {
        // Once before it is measured: what the first connection takes is not the flood's.
        let cut_before = cuts(&gateway, kind);
        flood(&gateway, kind, 100_000).unwrap();
        let before = gateway.resident_kib();
        for _ in 0..3 {
            let sent = flood(&gateway, kind, 100_000).unwrap();
            assert!(sent < 50_000, "{kind}: {sent} frames were taken");
        }
        let grown = gateway.resident_kib().saturating_sub(before);
        assert!(grown < 20 << 10, "{kind}: {grown} KiB more");
        wait_until("the connections are counted", || cuts(&gateway, kind) >= cut_before + 4.0);
        let told = |reason| gateway.stderr().contains(&format!("of 127.0.0.1 cut: {reason}"));
        wait_until("they are written down", || {
            // Some lines a second: those before may have been for other floods.
            let told = told(kind) || told("enhance_your_calm");
            if !told {
                flood(&gateway, kind, 100_000).unwrap();
            }
            told
        });
    }
    assert_eq!(gateway.client("bob").get(gateway.address, "/echo").unwrap().status, 200);
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
    assert!(node.count() < 2000, "{} requests reached the node", node.count());
}

#[test]
fn a_client_that_goes_on_with_malformed_requests_is_cut_and_few_are_answered() {
    let (gateway, node) = start("", "");
    let refused = || gateway.metric("hive_gateway_refusals_total", &[]);
    // The gateway refuses the first; the codec resets the second, which has no path.
    let dotted = raw_h2::request("GET", "/echo/../x");
    let pathless = raw_h2::block(&[(":method", "GET"), (":scheme", "https"), (":authority", "gateway.test")]);
    for (n, block) in [(1.0, &dotted), (2.0, &pathless)] {
        let mut h2 = raw(&gateway, &[]);
        let head = |id| frame(raw_h2::HEADERS, raw_h2::END_HEADERS | raw_h2::END_STREAM, id, block);
        let sent = h2.flood(5000, |n| {
            // Slow enough that each is judged before there are too many of them.
            std::thread::sleep(Duration::from_millis(2));
            head(stream(n))
        });
        assert!(sent < 5000, "it is still served");
        gateway.wait_metric(CLOSED, &[("reason", "malformed_requests")], n);
        // What came in one piece with the last is begun already.
        assert!(refused() < 400.0, "{} were answered", refused());
    }
    wait_until("the refusals are counted", || refused() >= 32.0);
    assert_eq!(node.count(), 0);
}

#[test]
fn errors_of_http2_are_counted_by_kind() {
    let (gateway, _node) = start("", "");
    let wide = frame(raw_h2::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]);
    for (kind, bytes) in [
        ("protocol_error", frame(raw_h2::DATA, 0, 0, b"x")),
        ("flow_control_error", [wide.clone(), wide].concat()),
        ("frame_size_error", frame(0xfa, 0, 0, &[0; 20_000])),
    ] {
        let mut h2 = raw(&gateway, &[]);
        h2.send(&bytes).unwrap();
        gateway.wait_metric(CLOSED, &[("reason", kind)], 1.0);
    }
}

#[test]
fn an_attack_leaves_some_lines_in_the_log_and_a_count() {
    let (gateway, _node) = start("", "");
    for _ in 0..60 {
        flood(&gateway, "ping_flood", 100_000).unwrap();
    }
    gateway.wait_metric(CLOSED, &[("reason", "ping_flood")], 60.0);
    let lines = || gateway.stderr().matches("cut: ping_flood").count();
    wait_until("something is written", || lines() >= 1);
    assert!(lines() <= 60);
}

#[test]
fn a_window_of_one_byte_ends_an_answer_in_time() {
    let (gateway, _node) = start("", "write: 700ms");
    let mut h2 = raw(&gateway, &[(INITIAL_WINDOW, 1)]);
    h2.send(&open(1, "/echo/long")).unwrap();
    // Slow enough to be no flood.
    let begun = Instant::now();
    while gateway.metric("hive_gateway_http_requests_total", &[("path", "/echo/*")]) < 1.0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the answer goes on, byte by byte");
        let _ = h2.send(&frame(raw_h2::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]));
        h2.take();
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
}

#[test]
fn an_answer_read_in_drops_is_cut_in_time() {
    let (gateway, _node) = start("", "write: 700ms");
    let mut connection = gateway.client("alice").connect_over(small_tcp(gateway.address).unwrap()).unwrap();
    connection.send(b"GET /echo/long HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    let begun = Instant::now();
    // A record of 16 KiB holds more than is read in the time for it.
    while gateway.metric(CLOSED, &[("reason", "write_timeout")]) < 1.0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still served");
        let mut drop = [0; 64];
        let _ = std::io::Read::read(&mut connection.tcp(), &mut drop);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn answers_that_nobody_reads_take_bounded_memory() {
    let (gateway, _node) = start("", "write: 1s");
    let before = gateway.resident_kib();
    // Windows as large as they can be, and nothing is read.
    let hoarders: Vec<_> = (0..4)
        .map(|_| {
            let mut h2 = raw(&gateway, &[(INITIAL_WINDOW, (1 << 31) - 1)]);
            h2.send(&frame(raw_h2::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0, 0])).unwrap();
            for n in 0..25 {
                h2.send(&open(stream(n), "/echo/long")).unwrap();
            }
            h2
        })
        .collect();
    let mut most = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        most = most.max(gateway.resident_kib().saturating_sub(before));
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("100 unread answers of 16 MiB: {most} KiB");
    assert!(most < 200 << 10, "{most} KiB for 100 answers");
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
    drop(hoarders);
}

#[test]
fn idle_connections_take_little_and_go() {
    let (gateway, _node) = start("", "idle: 3s, request_header: 3s");
    let before = gateway.resident_kib();
    let client = gateway.client("alice");
    let idle: Vec<_> = (0..300).filter_map(|_| client.connect(gateway.address).ok()).collect();
    let open = idle.len() as u64;
    assert!(open > 250, "{open}");
    let each = gateway.resident_kib().saturating_sub(before) / open;
    println!("{each} KiB for an idle connection");
    assert!(each < 120, "{each} KiB for an idle connection");
    gateway.wait_metric("hive_gateway_connections", &[], 0.0);
    assert!(gateway.metric(CLOSED, &[("reason", "idle")]) >= open as f64 - 5.0);
}

#[test]
fn a_body_in_crumbs_is_refused() {
    let (gateway, node) = start("", "");
    let mut connection = gateway.connect("alice");
    let head = b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let crumbs: Vec<u8> = b"1\r\nx\r\n".repeat(20_000);
    connection.send(head).unwrap();
    let _ = connection.send(&crumbs);
    let answer = connection.response(false).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("body_fragmented")));
    let mut connection = gateway.connect("alice");
    connection.send(head).unwrap();
    connection
        .send(&b"40\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n".repeat(5000))
        .unwrap();
    connection.send(b"0\r\n\r\n").unwrap();
    assert_eq!(connection.response(false).unwrap().status, 200, "small pieces are no crumbs");
    assert_eq!(node.count(), 1);
}

unsafe extern "C" {
    fn SSL_key_update(ssl: *mut openssl_sys::SSL, updatetype: c_int) -> c_int;
    fn SSL_do_handshake(ssl: *mut openssl_sys::SSL) -> c_int;
    fn SSL_renegotiate(ssl: *mut openssl_sys::SSL) -> c_int;
}

/// Sends a KeyUpdate that wants none in return (RFC 8446, section 4.6.3).
fn key_update(ssl: &SslRef) -> bool {
    // SAFETY: the session is alive, belongs to this thread, and its handshake is over.
    unsafe { SSL_key_update(ssl.as_ptr(), 0) == 1 && SSL_do_handshake(ssl.as_ptr()) == 1 }
}

/// KeyUpdates until the connection ends; how many.
fn key_updates(gateway: &Gateway, most: u32) -> std::io::Result<u32> {
    let mut connection = gateway.client("alice").connect(gateway.address)?;
    connection.exchange(GET)?;
    Ok((0..most).find(|_| !key_update(connection.ssl().ssl())).unwrap_or(most))
}

#[test]
fn a_flood_of_key_updates_is_cut_and_some_are_not() {
    let (gateway, _node) = start("", "");
    let mut connection = gateway.connect("alice");
    for _ in 0..500 {
        assert!(key_update(connection.ssl().ssl()));
    }
    assert_eq!(connection.exchange(GET).unwrap().status, 200, "some KeyUpdates do no harm");
    let sent = key_updates(&gateway, 200_000).unwrap();
    assert!(sent < 100_000, "{sent} KeyUpdates were taken");
    gateway.wait_metric(CLOSED, &[("reason", "tls_flood")], 1.0);
}

#[test]
fn renegotiation_is_refused() {
    let (gateway, _node) = start("", "");
    let client = gateway.client("alice").configure(|b| {
        b.set_max_proto_version(Some(openssl::ssl::SslVersion::TLS1_2)).unwrap();
    });
    let mut connection = client.connect(gateway.address).unwrap();
    assert_eq!(connection.exchange(GET).unwrap().status, 200);
    // SAFETY: as above.
    let began = unsafe {
        let ssl = connection.ssl().ssl().as_ptr();
        SSL_renegotiate(ssl) == 1 && SSL_do_handshake(ssl) == 1
    };
    let again = connection.exchange(GET);
    assert!(!began || again.is_err(), "a second handshake was made");
}

/// The time of an exchange: the middle one, and the 99th of a hundred.
fn latency(connection: &mut Connection, exchanges: usize) -> [Duration; 2] {
    let mut took: Vec<_> = (0..exchanges)
        .map(|_| {
            let start = Instant::now();
            let answer = connection.exchange(GET).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            start.elapsed()
        })
        .collect();
    took.sort();
    [took[exchanges / 2], took[exchanges * 99 / 100]]
}

/// What the attacking thread shares with the honest one.
#[derive(Default)]
struct Stage {
    /// The attack goes on.
    begun: AtomicBool,
    /// It is to end.
    over: AtomicBool,
}

impl Stage {
    /// Again and again until it is over; whom the gateway refuses or cuts comes back.
    fn again(&self, mut attack: impl FnMut() -> std::io::Result<()>) {
        self.begun.store(true, Ordering::Relaxed);
        while !self.over.load(Ordering::Relaxed) {
            let _ = attack();
            // Whoever is cut has to make a handshake, and how often is limited by itself.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Holds what has been set up until it is over.
    fn hold<T>(&self, held: T) {
        self.again(|| Ok(()));
        drop(held);
    }
}

type Attack = (&'static str, fn(&Gateway, &Stage));

/// Ends the attack also when the honest client fails, so that nobody waits for it.
struct Ending<'a>(&'a Stage);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Connections over which these bytes have been sent; the kernel keeps little for them.
fn many(gateway: &Gateway, count: usize, bytes: &[u8]) -> Vec<Connection> {
    let open = |_| {
        let mut connection = gateway.client("alice").connect_over(small_tcp(gateway.address).ok()?).ok()?;
        connection.send(bytes).ok()?;
        Some(connection)
    };
    (0..count).filter_map(open).collect()
}

macro_rules! frame_attack {
    ($kind:literal) => {
        ($kind, |gateway, stage| stage.again(|| flood(gateway, $kind, 100_000).map(drop)))
    };
}

const ATTACKS: &[Attack] = &[
    frame_attack!("rapid_reset"),
    frame_attack!("settings_flood"),
    frame_attack!("ping_flood"),
    frame_attack!("priority_flood"),
    frame_attack!("window_update_flood"),
    frame_attack!("empty_data_flood"),
    frame_attack!("continuation_flood"),
    ("key updates", |gateway, stage| stage.again(|| key_updates(gateway, 200_000).map(drop))),
    ("dribbled headers", |gateway, stage| {
        let mut slow = many(gateway, 50, b"G");
        stage.again(|| slow.iter_mut().try_for_each(|c| c.send(b"X")));
    }),
    ("dribbled bodies", |gateway, stage| {
        let head = b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 100000\r\n\r\n";
        let mut slow = many(gateway, 50, head);
        stage.again(|| slow.iter_mut().try_for_each(|c| c.send(b"x")));
    }),
    ("unread answers", |gateway, stage| {
        let unread = many(gateway, 20, b"GET /echo/long HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
        stage.hold(unread);
    }),
    ("windows of one byte", |gateway, stage| {
        let Ok(mut h2) = RawH2::connect(&gateway.client("alice"), gateway.address, &[(INITIAL_WINDOW, 1)]) else {
            return;
        };
        let _ = (0..50).try_for_each(|n| h2.send(&open(stream(n), "/echo/long")));
        stage.again(|| {
            h2.take();
            (0..50).try_for_each(|n| h2.send(&frame(raw_h2::WINDOW_UPDATE, 0, stream(n), &[0, 0, 0, 1])))
        });
    }),
    ("slow handshakes", |gateway, stage| {
        let silent: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(gateway.address).ok()).collect();
        stage.hold(silent);
    }),
    ("idle connections", |gateway, stage| stage.hold(many(gateway, 150, b""))),
    ("crumbs", |gateway, stage| {
        stage.again(|| {
            let mut connection = gateway.client("alice").connect(gateway.address)?;
            connection.send(b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            connection.send(&b"1\r\nx\r\n".repeat(20_000))?;
            connection.response(false).map(drop)
        });
    }),
    ("pipelining", |gateway, stage| {
        stage.again(|| {
            let mut connection = gateway.client("alice").connect(gateway.address)?;
            connection.send(&b"GET /nowhere HTTP/1.1\r\nHost: gateway.test\r\n\r\n".repeat(100))?;
            (0..100).try_for_each(|_| connection.response(false).map(drop))
        });
    }),
];

/// The attacker has machines of his own: here, his thread takes what the others leave of this one.
fn yield_to_all() {
    // SAFETY: changes the calling thread's own weight and no memory.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// How often an attack is tried beside honest clients, at most, and how many rounds must be quiet: more than half, for the
/// machine has other work too, while an attack that harms does so in each.
const ROUNDS: usize = 7;
const QUIET: usize = 4;
/// What any other work on the machine may cost one of a hundred exchanges.
const TIME_SLICE: Duration = Duration::from_millis(6);
const EXCHANGES: usize = 400;

#[test]
fn honest_clients_keep_their_latency_beside_each_attack() {
    // Limits as by default, so that an attacker is as many as one address may be.
    let limits = "connections_per_address: 200, new_connections_per_address: 50/s, requests_per_connection: 1000000";
    let mut harmed = String::new();
    for (name, attack) in ATTACKS {
        let (gateway, _node) = start(limits, "");
        let mut honest = gateway.connect("bob");
        latency(&mut honest, EXCHANGES);
        let (mut worst, mut slowest_alone) = (String::new(), Duration::ZERO);
        let mut round = || {
            let alone = latency(&mut honest, EXCHANGES);
            // What other work on the machine does to an honest client, it does beside an attack too.
            slowest_alone = slowest_alone.max(alone[1]);
            let stage = Stage::default();
            let beside = std::thread::scope(|scope| {
                scope.spawn(|| {
                    yield_to_all();
                    attack(&gateway, &stage);
                    stage.begun.store(true, Ordering::Relaxed);
                });
                let _ending = Ending(&stage);
                while !stage.begun.load(Ordering::Relaxed) {
                    latency(&mut honest, EXCHANGES / 10);
                }
                latency(&mut honest, EXCHANGES / 10);
                latency(&mut honest, EXCHANGES)
            });
            println!("{name}: alone {alone:?}, beside {beside:?}");
            worst = format!("{name}: alone {alone:?}, beside {beside:?}\n");
            beside[0] <= alone[0] * 2 && beside[1] <= slowest_alone * 2 + TIME_SLICE
        };
        let (mut quiet, mut loud) = (0, 0);
        while quiet < QUIET && loud <= ROUNDS - QUIET {
            *(if round() { &mut quiet } else { &mut loud }) += 1;
        }
        if quiet < QUIET {
            harmed += &worst;
        }
    }
    assert!(harmed.is_empty(), "middle and 99th of 100 exchanges:\n{harmed}");
}
