//! What is known of a request when its connection ends, against a real kernel.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream as StdStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::*;

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What a node does after its first answer.
type Ending = fn(StdStream);

/// A connection to a node that does as it is told.
async fn connect(node: impl FnOnce(StdStream) + Send + 'static) -> (Link, JoinHandle<()>) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let node = std::thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        node(tcp);
    });
    (Link::new(Io::Plain(TcpStream::connect(address).await.unwrap()), 0), node)
}

fn read_request(tcp: &mut StdStream) {
    tcp.read_exact(&mut [0; REQUEST.len() + 2]).unwrap();
}

fn serve_one(tcp: &mut StdStream) {
    read_request(tcp);
    tcp.write_all(ANSWER).unwrap();
}

async fn send(link: &mut Link) -> Result<ResponseHeader, Broken> {
    link.begin(Bytes::from_static(REQUEST), Bytes::from_static(b"{}"), false);
    link.header().await
}

/// An exchange that goes well, after which the connection rests.
async fn one_exchange(link: &mut Link) {
    assert_eq!(send(link).await.unwrap().status, 200);
    while link.body().await.unwrap().is_some() {}
    assert!(link.may_rest());
    link.rest();
}

#[tokio::test]
async fn a_closed_connection_is_seen_before_the_runtime_has_heard_of_it() {
    let endings: [Ending; 3] = [
        drop,
        |tcp| SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap(),
        // Nobody asked, so it is no answer to what comes next.
        |mut tcp| {
            tcp.write_all(ANSWER).unwrap();
            std::mem::forget(tcp);
        },
    ];
    for ending in endings {
        let (end, told) = std::sync::mpsc::channel();
        let (mut link, node) = connect(move |mut tcp| {
            serve_one(&mut tcp);
            told.recv().unwrap();
            ending(tcp);
        })
        .await;
        one_exchange(&mut link).await;
        assert!(link.is_alive());
        // Nothing is awaited from here on: the runtime does not turn.
        end.send(()).unwrap();
        node.join().unwrap();
        assert!(!link.is_alive());
    }
}

#[tokio::test]
async fn a_node_that_had_closed_has_read_nothing() {
    let (mut link, node) = connect(|mut tcp| serve_one(&mut tcp)).await;
    one_exchange(&mut link).await;
    node.join().unwrap();
    // As if the FIN were still on its way: the connection is not looked at.
    assert!(matches!(send(&mut link).await, Err(Broken::Closed { .. })));
    assert_eq!(link.unread(), Some(Unread::Closed));

    let (mut link, node) = connect(drop).await;
    node.join().unwrap();
    assert!(send(&mut link).await.is_err());
    assert_eq!(link.unread(), Some(Unread::Refused), "a new connection");
}

#[tokio::test]
async fn a_long_request_of_which_the_node_has_read_the_beginning_is_not_unread() {
    let (mut link, _node) = connect(|mut tcp| {
        serve_one(&mut tcp);
        read_request(&mut tcp);
    })
    .await;
    one_exchange(&mut link).await;
    link.begin(Bytes::from_static(REQUEST), Bytes::from(vec![b' '; 8 << 20]), false);
    assert!(link.header().await.is_err());
    assert_eq!(link.unread(), None);
}

#[tokio::test]
async fn whatever_a_node_may_have_read_is_not_unread() {
    let endings: [(&str, Ending); 5] = [
        ("it reads and closes", |mut tcp| read_request(&mut tcp)),
        ("it reads and resets at once, before anything is acknowledged", |mut tcp| {
            read_request(&mut tcp);
            SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
        }),
        ("it closes with the request in its queue", |tcp| {
            tcp.peek(&mut [0]).unwrap();
        }),
        ("it reads a part", |mut tcp| tcp.read_exact(&mut [0; 5]).unwrap()),
        ("it says something first", |mut tcp| {
            read_request(&mut tcp);
            tcp.write_all(b"HTTP/1.1 200 O").unwrap();
        }),
    ];
    for (what, ending) in endings {
        for _ in 0..20 {
            let (mut link, node) = connect(move |mut tcp| {
                serve_one(&mut tcp);
                ending(tcp);
            })
            .await;
            one_exchange(&mut link).await;
            assert!(send(&mut link).await.is_err(), "{what}");
            assert_eq!(link.unread(), None, "{what}");
            node.join().unwrap();
        }
    }
}

#[tokio::test]
async fn a_node_that_ended_only_its_own_half_may_read_on() {
    let (told, tell) = std::sync::mpsc::channel();
    let (mut link, node) = connect(move |mut tcp| {
        serve_one(&mut tcp);
        tcp.shutdown(Shutdown::Write).unwrap();
        told.send(()).unwrap();
        read_request(&mut tcp);
        // Until the gateway lets go.
        let _ = tcp.read(&mut [0]);
    })
    .await;
    one_exchange(&mut link).await;
    tell.recv().unwrap();
    let begun = Instant::now();
    assert!(send(&mut link).await.is_err());
    assert_eq!(link.unread(), None);
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(link);
    node.join().unwrap();
}
