//! The status page in a real Chromium.

use hive_gateway::cli::pki::CrlSpec;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::certs::{Pki, client_leaf, from_now};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;
use crate::support::wait_until;

/// Two nodes, whose health is known within two seconds.
fn start(nodes: &[&Node]) -> Gateway {
    let addresses: Vec<_> = nodes.iter().map(|n| n.address).collect();
    let mut setup = Setup::new(&[]);
    setup.upstreams =
        upstream("hive", "http", &addresses, "health_check: { interval: 2s, unhealthy_after: 1, healthy_after: 1 }");
    setup.start()
}

fn url(gateway: &Gateway) -> String {
    format!("http://{}/", gateway.admin)
}

/// What the table of nodes says of one.
fn row(node: &Node) -> String {
    format!("document.querySelector('#upstreams tr[data-key*=\"{}\"]')", node.address)
}

/// Opens the page and waits for the first answer.
fn open(gateway: &Gateway) -> Browser {
    let mut browser = Browser::open(&url(gateway));
    browser.wait("the gateway has answered", "document.querySelector('#fresh').textContent === 'Live'");
    browser
}

#[track_caller]
fn nothing_is_wrong(browser: &mut Browser, gateway: &Gateway) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let home = url(gateway);
    let elsewhere: Vec<_> =
        browser.requested().into_iter().filter(|to| !to.starts_with(&home) && !to.starts_with("data:")).collect();
    assert_eq!(elsewhere, Vec::<String>::new());
}

#[test]
fn a_node_is_seen_to_go_down_and_to_come_back() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = start(&[&a, &b]);
    let mut page = open(&gateway);
    assert_eq!(page.text("#verdict-word"), "Serving");
    assert_eq!(page.text("#announce"), "", "nothing is read out that did not change");
    a.set_health(500);
    page.wait("it is shown as down", &format!("{}.dataset.state === 'down'", row(&a)));
    assert_eq!(page.eval(&format!("{}.dataset.state", row(&b))), "up");
    assert!(page.text("#verdict").contains(&a.address.to_string()), "{}", page.text("#verdict"));
    assert!(page.text("#upstreams").contains("status 500"), "{}", page.text("#upstreams"));
    page.wait("it is read out", "document.querySelector('#announce').textContent.endsWith('is down.')");
    a.set_health(200);
    page.wait("it is shown as up", &format!("{}.dataset.state === 'up'", row(&a)));
    page.wait("all is well", "document.querySelector('#verdict-word').textContent === 'Serving'");
    nothing_is_wrong(&mut page, &gateway);
}

#[test]
fn with_every_node_drained_the_page_says_that_requests_are_refused() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = start(&[&a, &b]);
    let mut page = open(&gateway);
    for node in [&a, &b] {
        let drained = gateway.admin_ask("POST", &format!("/v1/drain?upstream=hive&node=http://{}", node.address));
        assert_eq!(drained.status, 200);
    }
    page.wait("it is not ready", "document.querySelector('#verdict-word').textContent === 'Not ready'");
    let said = page.text("#verdict-text");
    assert!(said.starts_with("Requests are refused with 503: every node that is up is drained in: hive."), "{said}");
    nothing_is_wrong(&mut page, &gateway);
}

#[test]
fn a_list_past_its_end_and_a_failed_reload_are_in_the_headline() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    let late = from_now(-7200, -60);
    let late = CrlSpec::new(late.not_before, late.not_after).issue(&setup.pki.0.intermediate).unwrap();
    std::fs::write(setup.dir.path().join("mesh.crl"), late).unwrap();
    std::fs::write(setup.dir.path().join("ca.pem"), setup.pki.0.bundle_pem().unwrap()).unwrap();
    setup.client_auth = "crl: [mesh.crl]".into();
    let gateway = setup.start();
    let mut page = open(&gateway);
    let seen = "[document.querySelector('#verdict').className, document.querySelector('#verdict-word').textContent]";
    assert_eq!(page.eval(seen), json!(["bad", "Serving, degraded"]));
    let said = page.text("#verdict-text");
    assert!(said.starts_with("Something is in use past the end: listener front: the CRL of"), "{said}");
    assert!(!said.contains("ready, every node is up") && said.ends_with("its clients are refused."), "{said}");

    gateway.edit("crl: [mesh.crl]", "crl: []");
    assert_eq!(gateway.reload().status, 200);
    page.wait("all is well", "document.querySelector('#verdict').className === 'good'");
    gateway.edit("upstream: hive, json_rpc", "upstream: hvie, json_rpc");
    assert_eq!(gateway.reload().status, 422);
    page.wait("it is told", "document.querySelector('#verdict').className === 'warn'");
    assert_eq!(page.text("#verdict-text"), "The last reload failed; the configuration before it stays in use.");
    page.wait("it is read out", "document.querySelector('#announce').textContent === 'The last reload failed.'");
}

/// Says yes, and waits until that is done.
fn agree(page: &mut Browser) {
    page.click("#ask-yes");
    page.wait("it asks no more", "!document.querySelector('#ask').open");
}

#[test]
fn the_buttons_drain_a_node_and_begin_and_end_maintenance() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = start(&[&a, &b]);
    let mut page = open(&gateway);
    let node = format!("http://{}", a.address);
    page.click(&format!("[aria-label='Drain node {node}']"));
    page.wait("it asks", "document.querySelector('#ask').open");
    assert!(page.text("#ask-text").contains(&node));
    page.click("#ask-no");
    page.wait("it asks no more", "!document.querySelector('#ask').open");
    assert_eq!(gateway.status()["orders"], json!([]), "not without a word");
    page.click(&format!("[aria-label='Drain node {node}']"));
    agree(&mut page);
    page.wait("it is drained", &format!("{}.dataset.state === 'drained'", row(&a)));
    assert_eq!(gateway.status()["orders"][0]["node"], node);
    page.click(&format!("[aria-label='Return node {node}']"));
    agree(&mut page);
    page.wait("it is back", &format!("{}.dataset.state === 'up'", row(&a)));

    page.click("[aria-label='Begin maintenance: Route echo']");
    page.click("#ask-retry");
    page.write("soon");
    page.click("#ask-yes");
    page.wait("it says what is wrong", "document.querySelector('#ask-wrong').textContent.includes('soon')");
    page.eval("document.querySelector('#ask-retry').value = ''");
    page.click("#ask-retry");
    page.write("7m");
    agree(&mut page);
    page.wait(
        "the route is in maintenance",
        "document.querySelector('#routes tr[data-key=echo]').innerText.includes('maintenance')",
    );
    let refused = gateway.client("alice").get(gateway.address, "/echo").unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("420")));
    page.click("[aria-label='End maintenance: Route echo']");
    agree(&mut page);
    wait_until("it serves again", || gateway.status()["orders"] == json!([]));

    page.click("#gateway-maintenance");
    agree(&mut page);
    page.wait("all is in maintenance", "document.querySelector('#verdict-word').textContent === 'In maintenance'");
    assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 503);
    page.click("#gateway-maintenance");
    agree(&mut page);
    page.wait("it serves again", "document.querySelector('#verdict-word').textContent === 'Serving'");
    // What is wrong with a wish is answered with 400, which the browser notes; nothing else is.
    let complaints = page.complaints();
    assert!(complaints.iter().all(|c| c.contains("400 (Bad Request)")), "{complaints:?}");
}

#[test]
fn everything_can_be_done_by_keyboard() {
    let node = Node::start();
    let gateway = start(&[&node]);
    let mut page = open(&gateway);
    page.key("Tab");
    assert_eq!(page.eval("document.activeElement.className"), "skip");
    page.key("Tab");
    assert_eq!(page.eval("document.activeElement.id"), "gateway-maintenance");
    let ring = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(page.eval(ring), "solid", "one sees where one is");
    page.key("Enter");
    page.wait("it asks", "document.querySelector('#ask').open");
    assert_eq!(page.eval("document.activeElement.id"), "ask-no", "what changes nothing comes first");
    page.key("Escape");
    page.wait("it asks no more", "!document.querySelector('#ask').open");
    assert_eq!(page.eval("document.activeElement.id"), "gateway-maintenance");
    page.key("Enter");
    page.key("Tab");
    assert_eq!(page.eval("document.activeElement.id"), "ask-yes");
    page.key("Enter");
    wait_until("the gateway is in maintenance", || gateway.status()["orders"][0]["kind"] == "gateway");
    page.wait("the page knows", "document.querySelector('#verdict-word').textContent === 'In maintenance'");
    assert_eq!(page.eval("document.activeElement.id"), "gateway-maintenance", "an update does not take the focus away");
    // Each button comes in its turn.
    let buttons = page.eval("[...document.querySelectorAll('main button')].length").as_u64().unwrap();
    let mut met = std::collections::BTreeSet::new();
    for _ in 0..buttons {
        page.key("Tab");
        met.insert(
            page.eval("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id").to_string(),
        );
    }
    assert_eq!(met.len() as u64, buttons, "{met:?}");
    nothing_is_wrong(&mut page, &gateway);
}

#[test]
fn it_fits_a_phone_and_is_readable_in_both_schemes() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = start(&[&a, &b]);
    a.set_health(500);
    for n in 0..3 {
        let path = format!("/{}{n}", "long".repeat(80));
        let _ = gateway.client("bob").get(gateway.address, &path);
    }
    let stranger = Pki::new("Elsewhere").leaf(&client_leaf("mallory", "spiffe://else.test/mallory"));
    let _ = Client::new(gateway.pki(), Some(stranger)).get(gateway.address, "/echo");
    wait_until("there is something to show", || {
        let status = gateway.status();
        !status["peers"].as_array().unwrap().is_empty() && status["upstreams"][0]["nodes"][0]["health"] == "down"
    });
    let mut page = open(&gateway);
    page.wait("the node is down", "document.querySelector('tr[data-state=down]')");
    for width in [320, 375, 768, 1280] {
        page.set_width(width);
        let wide = page.eval("[document.documentElement.scrollWidth, innerWidth]");
        assert!(wide[0].as_u64() <= Some(u64::from(width)), "{width}: {wide}");
    }
    for scheme in ["light", "dark"] {
        let features = json!({ "features": [ { "name": "prefers-color-scheme", "value": scheme } ] });
        page.call("Emulation.setEmulatedMedia", features);
        // WCAG 2.2, 1.4.3: 4.5 to 1.
        assert_eq!(page.eval(CONTRAST), json!([]), "{scheme}");
    }
    nothing_is_wrong(&mut page, &gateway);
}

/// Texts whose contrast with what lies behind them is too low.
const CONTRAST: &str = r#"(() => {
  const rgb = (c) => c.match(/[\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0.99) return c.slice(0, 3); } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || e.closest("button:disabled, .skip") || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([e.textContent.trim().slice(0, 30), ratio.toFixed(2)]);
  }
  return low;
})()"#;

#[test]
fn a_screen_reader_finds_landmarks_and_names() {
    let node = Node::start();
    let gateway = start(&[&node]);
    let mut page = open(&gateway);
    page.click("#gateway-maintenance");
    page.wait("it asks", "document.querySelector('#ask').open");
    let in_dialog = page.call("Accessibility.getFullAXTree", json!({}));
    page.click("#ask-no");
    let tree = page.call("Accessibility.getFullAXTree", json!({}));
    let named = |tree: &serde_json::Value, role: &str| -> Vec<String> {
        let nodes =
            tree["nodes"].as_array().unwrap().iter().filter(|n| n["role"]["value"] == role && n["ignored"] == false);
        nodes.map(|n| n["name"]["value"].as_str().unwrap_or_default().to_owned()).collect()
    };
    for landmark in ["banner", "main", "contentinfo"] {
        assert_eq!(named(&tree, landmark).len(), 1, "{landmark}");
    }
    assert_eq!(named(&in_dialog, "dialog"), ["Begin maintenance?"]);
    for (tree, role) in [
        (&tree, "button"),
        (&in_dialog, "button"),
        (&in_dialog, "textbox"),
        (&tree, "region"),
        (&tree, "table"),
        (&tree, "image"),
    ] {
        let names = named(tree, role);
        assert!(!names.is_empty() && names.iter().all(|name| !name.trim().is_empty()), "{role}: {names:?}");
    }
    assert_eq!(page.eval("document.documentElement.lang"), "en");
    assert_eq!(page.eval("document.querySelectorAll('[aria-live], [role=status]').length"), 1, "one place speaks");
}

#[test]
fn nothing_that_a_client_says_becomes_more_than_text() {
    let node = Node::start();
    let gateway = start(&[&node]);
    let evil = "<img src=x onerror=hacked=1>";
    let stranger = Pki::new(evil).leaf(&client_leaf(evil, "spiffe://else.test/mallory"));
    let _ = Client::new(gateway.pki(), Some(stranger)).get(gateway.address, "/echo");
    let _ = gateway.client("alice").get(gateway.address, "/<script>hacked=1</script>");
    wait_until("the handshake has failed", || !gateway.status()["failed_handshakes"].as_array().unwrap().is_empty());
    let mut page = open(&gateway);
    page.wait("it is shown as it is", "document.querySelector('#handshakes').innerText.includes('<img src')");
    assert_eq!(page.eval("typeof hacked"), "undefined");
    assert_eq!(page.eval("document.querySelectorAll('img, iframe, object, main script').length"), 0);
    // And what would get in could not run.
    for (attempt, why) in [
        ("document.body.innerHTML = '<p>'", "TypeError"),
        ("document.createElement('img').setAttribute('onerror', 'hacked = 1')", "TypeError"),
        ("setTimeout('hacked = 1')", "TypeError"),
        ("eval('hacked = 1')", "EvalError"),
    ] {
        let blocked =
            page.eval(&format!("(() => {{ try {{ {attempt}; return 'done'; }} catch (e) {{ return e.name; }} }})()"));
        assert_eq!(blocked, why, "{attempt}");
    }
    assert_eq!(page.eval("typeof hacked"), "undefined");
}

#[test]
fn the_secret_is_asked_for_and_kept_in_memory_alone() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.admin = ", bearer_secret: 0123456789abcdef0123456789abcdef".into();
    let gateway = setup.start();
    let mut page = Browser::open(&url(&gateway));
    page.wait("it asks", "document.querySelector('#secret').open");
    for (secret, said) in [("wrong", "This is not the secret."), ("0123456789abcdef0123456789abcdef", "")] {
        page.click("#secret-value");
        page.write(secret);
        page.key("Enter");
        if !said.is_empty() {
            page.wait(
                "it says so",
                &format!("document.querySelector('#secret-wrong').textContent === {}", json!(said)),
            );
            page.wait("it asks again", "document.querySelector('#secret').open");
        }
    }
    page.wait("it is shown", "document.querySelector('#fresh').textContent === 'Live'");
    page.click("#gateway-maintenance");
    page.click("#ask-yes");
    page.wait("it is done with the secret", "document.querySelector('#verdict-word').textContent === 'In maintenance'");
    assert_eq!(page.eval("localStorage.length + sessionStorage.length + document.cookie.length"), 0);
    assert_eq!(page.eval("document.documentElement.outerHTML.includes('0123456789abcdef0123')"), false);
    assert!(page.requested().iter().all(|to| !to.contains("0123456789abcdef")));
    // The browser notes the two answers without the right secret, and nothing else.
    let complaints = page.complaints();
    assert!(complaints.iter().all(|c| c.contains("401 (Unauthorized)")), "{complaints:?}");
    page.go(&url(&gateway));
    page.wait("it asks anew", "document.querySelector('#secret').open");
}

#[test]
fn it_says_when_the_gateway_is_not_to_be_reached() {
    let node = Node::start();
    let mut gateway = start(&[&node]);
    let mut page = open(&gateway);
    gateway.signal(Signal::SIGKILL);
    gateway.wait_exit();
    page.wait("it says so", "document.querySelector('#verdict-word').textContent === 'Not to be reached'");
    assert!(page.text("#verdict-text").contains("old"), "{}", page.text("#verdict-text"));
    page.wait(
        "it is read out",
        "document.querySelector('#announce').textContent === 'The gateway is not to be reached.'",
    );
    assert_eq!(page.eval("document.querySelector('#gateway-maintenance').disabled"), true);
}
