//! The status page in a real browser, with a real daemon and real jobs.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};

use super::browser::{Browser, exchange, free_address};
use super::daemon::{Daemon, JOB_TIMEOUT, local};
use super::support::{TIMEOUT, until};

/// A text that would be visible if it were parsed as markup.
const HOSTILE: &str = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>";

/// Finds the lowest contrast of a text with its background, and the text, by WCAG 2.2, 1.4.3.
const LEAST_CONTRAST: &str = r"
    const linear = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const parts = (color) => color.match(/[\d.]+/g).map(Number);
    const ground = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const color = parts(getComputedStyle(one).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
        }
        return [255, 255, 255];
    };
    let least = [99, ''];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || element.closest('svg') || !element.checkVisibility()) continue;
        const [one, other] = [light(parts(getComputedStyle(element).color)), light(ground(element))];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < least[0]) least = [contrast, element.outerHTML.slice(0, 200)];
    }
    return least;";

/// Tries to reach an address with all features of a page. The results are in `tried`.
fn reach_out(elsewhere: SocketAddr) -> String {
    format!(
        r"
        const away = 'http://{elsewhere}/';
        window.tried = [];
        document.addEventListener('securitypolicyviolation',
            (event) => window.tried.push(event.effectiveDirective));
        const add = (name, attributes) => document.body.append(
            Object.assign(document.createElement(name), attributes));
        add('img', {{ src: away }});
        add('script', {{ src: away }});
        add('script', {{ textContent: 'document.title = 1' }});
        add('link', {{ rel: 'stylesheet', href: away }});
        add('iframe', {{ src: away }});
        fetch(away).catch(() => {{}});"
    )
}

#[test]
fn the_page_shows_what_happens_as_it_happens_and_nothing_else() {
    let (address, elsewhere) = (free_address(), TcpListener::bind("127.0.0.1:0").unwrap());
    elsewhere.set_nonblocking(true).unwrap();
    let mut daemon = Daemon::new();
    let settings = local("", "max = 1") + &format!("\n[status]\nlisten = \"{address}\"\n");
    daemon.configure(&settings);
    daemon.serve();
    assert!(daemon.log().contains(&format!("http://{address}/")), "{}", daemon.log());
    for (path, expected) in [("/healthz", "\"healthy\":true"), ("/readyz", "\"ready\":true")] {
        let response = exchange(address, "GET", path, "");
        assert!(response.starts_with("HTTP/1.1 200") && response.contains(expected), "{response}");
    }
    let script = format!(": \"{HOSTILE}\"; getent hosts tracker.example; exit 7");
    let ended = daemon.submit(&script);
    daemon.wait_for(&ended, &["finished"]);
    let running = daemon.submit("getent hosts tracker.example; sleep 3600; : first");
    daemon.wait_for(&running, &["running"]);
    daemon.submit("sleep 3600; : second");

    let browser = Browser::start();
    browser.open(&format!("http://{address}/"));
    browser.wait_for("#live", "live", TIMEOUT);
    browser.wait_for("#waiting", "the pool is at its maximum of 1", TIMEOUT);
    assert!(browser.text("#active").contains("first"), "{}", browser.text("main"));
    browser.wait_for("#active", "refused", TIMEOUT);
    assert!(browser.text("#ended").contains("exit 7"), "{}", browser.text("#ended"));
    assert!(browser.text("#ended").contains("refused"), "{}", browser.text("#ended"));
    assert!(browser.text("#ended").contains("<script>"), "{}", browser.text("#ended"));
    let bar =
        browser.run("return document.querySelector('#ended .bar').getAttribute('aria-label')");
    assert!(bar.as_str().unwrap().contains("running "), "{bar}");

    // Changes appear without a reload of the page.
    browser.run("window.same = true");
    let third = daemon.submit("echo third");
    browser.wait_for("#waiting", "echo third", TIMEOUT);
    daemon.run(&["cancel", &running]).assert_code(0);
    browser.wait_for("#active", "second", JOB_TIMEOUT);
    assert_eq!(browser.run("return window.same"), true);

    assert_readable(&browser, address, &ended);
    assert_no_foreign_requests(&browser, address, &elsewhere);
    assert_works_without_scripts(&browser, &daemon, address);
    assert_shows_outage(&browser, &mut daemon, address, &third);
    daemon.finish();
}

/// Panics unless each page is readable in light and dark mode, on wide and narrow screens.
fn assert_readable(browser: &Browser, address: SocketAddr, job: &str) {
    for path in ["/".to_owned(), format!("/jobs/{job}")] {
        browser.open(&format!("http://{address}{path}"));
        let mut grounds = Vec::new();
        for (width, is_dark) in [(1200, false), (1200, true), (390, false), (390, true)] {
            browser.look(width, is_dark);
            let wide = browser.run("return document.documentElement.scrollWidth");
            assert!(wide.as_u64().unwrap() <= width.into(), "{path} is {wide} wide, not {width}");
            let least = browser.run(LEAST_CONTRAST);
            assert!(least[0].as_f64().unwrap() >= 4.5, "{path} by {is_dark}: {least}");
            grounds.push(browser.run("return getComputedStyle(document.body).backgroundColor"));
        }
        assert!(grounds[0] != grounds[1] && grounds[0] == grounds[2], "{grounds:?}");
    }
    assert!(browser.text("h1").contains(HOSTILE), "{}", browser.text("h1"));
    assert!(browser.text("#job").contains("tracker.example"), "{}", browser.text("#job"));
    assert_eq!(browser.run("return document.title"), format!("Job {job} · Mayfly"));
    browser.look(1200, false);
}

/// Panics if the page loads, or could load, anything from another origin.
fn assert_no_foreign_requests(browser: &Browser, address: SocketAddr, elsewhere: &TcpListener) {
    browser.open(&format!("http://{address}/"));
    browser.wait_for("#live", "live", TIMEOUT);
    let loaded =
        browser.run("return performance.getEntriesByType('resource').map((one) => one.name)");
    let loaded = loaded.as_array().unwrap();
    assert!(loaded.len() >= 3, "{loaded:?}");
    let own = |name: &Value| name.as_str().unwrap().starts_with(&format!("http://{address}/"));
    assert!(loaded.iter().all(own), "{loaded:?}");
    browser.run(&reach_out(elsewhere.local_addr().unwrap()));
    until("the blocked requests", TIMEOUT, || {
        let tried = browser.run("return window.tried");
        let tried = tried.as_array().unwrap().clone();
        let directives =
            ["img-src", "script-src-elem", "style-src-elem", "frame-src", "connect-src"];
        directives.iter().all(|one| tried.contains(&json!(one))).then_some(())
    });
    // A browser may connect ahead of a request. Only requests count.
    while let Ok((mut stream, _)) = elsewhere.accept() {
        stream.set_nonblocking(true).unwrap();
        let mut request = [0; 1024];
        match stream.read(&mut request) {
            Ok(length) => assert_eq!(String::from_utf8_lossy(&request[..length]), ""),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!(browser.run("return document.title"), "Mayfly");
}

/// Panics unless the tables work without scripts, and are reloaded regularly.
fn assert_works_without_scripts(browser: &Browser, daemon: &Daemon, address: SocketAddr) {
    browser.command("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
    browser.open(&format!("http://{address}/"));
    let document = until("a page", TIMEOUT, || browser.document());
    assert!(document.contains("the pool is at its maximum of 1"), "{document}");
    assert!(document.contains("as of "), "{document}");
    daemon.submit("echo fourth");
    until("the page to be loaded again", TIMEOUT, || {
        browser.document().filter(|document| document.contains("echo fourth")).map(drop)
    });
    browser.command("Emulation.setScriptExecutionDisabled", &json!({ "value": false }));
}

/// Panics unless the page shows that it is outdated when the daemon is gone, and updates when it is
/// back.
fn assert_shows_outage(browser: &Browser, daemon: &mut Daemon, address: SocketAddr, waiting: &str) {
    browser.open(&format!("http://{address}/"));
    browser.wait_for("#live", "live", TIMEOUT);
    daemon.kill();
    browser.wait_for("#live", "No response from the daemon", TIMEOUT);
    assert!(browser.text("#waiting").contains("echo third"), "the page lost its rows");
    daemon.serve();
    browser.wait_for("#live", "live", TIMEOUT);
    let second = daemon.ask(&["jobs", "--state", "running"])[0]["id"].to_string();
    daemon.run(&["cancel", &second]).assert_code(0);
    daemon.wait_for(waiting, &["finished"]);
    browser.wait_for("#ended", "echo third", TIMEOUT);
}
