use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::admin::{Readiness, Reloaded};
use crate::observe::Metrics;
use crate::secret::Secret;

/// An admin listener on a free port; ends with the test's runtime.
struct Admin {
    address: SocketAddr,
    shutdown: watch::Sender<bool>,
}

async fn start() -> Admin {
    let state = Arc::new(AdminState {
        metrics: Metrics::new(),
        alive: Box::new(|| true),
        ready: Box::new(Readiness::default),
        status: Box::new(|| serde_json::json!({ "version": "1" })),
        reload: Box::new(|| Reloaded { ok: true, body: serde_json::json!({ "generation": 2 }) }),
        carry_out: Box::new(|_| Ok(serde_json::json!({ "orders": [] }))),
        log_filter: Box::new(|_| Ok("info".into())),
        bearer: Box::new(|| Some(Secret::new("s3cret".into()))),
        loopback: true,
    });
    let app = Arc::new(AdminApp::new(state));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, watch) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((socket, remote)) = listener.accept().await {
            let (app, watch) = (app.clone(), watch.clone());
            tokio::spawn(async move { app.talk(socket, remote.ip(), &watch).await });
        }
    });
    Admin { address, shutdown }
}

/// Sends text and reads until the gateway closes.
async fn talk(admin: &Admin, text: &str) -> String {
    let mut socket = Socket::connect(admin.address).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), socket.read_to_end(&mut answer)).await.unwrap();
    // A reset after the answer is as good as an end.
    drop(read);
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn health_comes_over_the_wire_without_a_server_header() {
    let admin = start().await;
    let answer = talk(&admin, "GET /v1/health?x=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let lower = answer.to_ascii_lowercase();
    assert!(
        lower.contains("cache-control: no-store\r\n") && lower.contains("content-type: application/json\r\n"),
        "{answer}"
    );
    assert!(!lower.contains("server:") && !lower.contains("pingora"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&body["ok"], &body["metricsAuthRequired"]), (&true.into(), &true.into()), "{answer}");
}

#[tokio::test]
async fn head_has_the_length_and_no_body_and_the_connection_lives_on() {
    let admin = start().await;
    let two = "HEAD /v1/ready HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut socket = Socket::connect(admin.address).await.unwrap();
    for _ in 0..2 {
        socket.write_all(two.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(socket.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: keep-alive"), "{answer}");
        assert!(!answer.contains("content-length: 0\r\n") && answer.contains("content-length:"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_is_ignored_and_the_connection_ends() {
    let admin = start().await;
    let smuggled = "POST /v1/health HTTP/1.1\r\nHost: a\r\nContent-Length: 45\r\n\r\nGET /v1/health HTTP/1.1\r\nHost: a\r\n\r\n__________";
    let answer = talk(&admin, smuggled).await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("allow: get, head\r\n"), "{answer}");
}

#[tokio::test]
async fn an_address_that_takes_its_places_leaves_some_to_others() {
    let admin = start().await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        silent.push(Socket::connect(admin.address).await.unwrap());
    }
    // Those beyond its share are closed.
    assert_eq!(silent[CONNECTIONS_PER_ADDRESS_MAX].read(&mut [0]).await.unwrap(), 0);
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(admin.address).await.unwrap();
    other.write_all(b"GET /v1/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(5), other.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn what_is_no_request_gets_the_small_error() {
    let admin = start().await;
    for text in ["nonsense\r\n\r\n", "GET /v1/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"] {
        let answer = talk(&admin, text).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("{\"error\":\"bad_request\""), "{answer}");
    }
}

#[tokio::test]
async fn status_and_metrics_ask_for_the_secret() {
    let admin = start().await;
    for path in ["/v1/status", "/v1/metrics"] {
        let answer =
            talk(&admin, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("www-authenticate: bearer\r\n"), "{answer}");
        let with = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret\r\nConnection: close\r\n\r\n"
        );
        assert!(talk(&admin, &with).await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn while_the_process_ends_a_connection_is_not_kept() {
    let admin = start().await;
    admin.shutdown.send(true).unwrap();
    let answer = talk(&admin, "GET /v1/health HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.to_ascii_lowercase().contains("connection: close\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_dribbles_its_header_is_cut_off() {
    let admin = start().await;
    let mut socket = Socket::connect(admin.address).await.unwrap();
    socket.write_all(b"GET /v1/health HTTP/1.1\r\n").await.unwrap();
    let started = tokio::time::Instant::now();
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
    let took = started.elapsed();
    assert!(took >= HEADER_TIMEOUT && took < HEADER_TIMEOUT * 2, "{took:?}");
}
