//! A headless Chromium, driven by the `WebDriver` protocol (<https://www.w3.org/TR/webdriver2/>)
//! over plain HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::support::{TIMEOUT, until};

/// A browser with one window. It resolves no names, so that it can reach only this host.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    // Removed when the browser is dropped.
    profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let address = free_address();
        // A separate pid namespace, so that nothing of the browser outlives the test.
        let driver = Command::new("unshare")
            .args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg("chromedriver")
            .arg(format!("--port={}", address.port()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is not installed: run scripts/test");
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self { driver, address, session: String::new(), profile };
        until("chromedriver", TIMEOUT, || TcpStream::connect(address).ok());
        let data = format!("--user-data-dir={}", browser.profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--window-size=1200,900",
            &data,
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch":
            { "goog:chromeOptions": { "args": arguments } } } });
        let session = browser.call("POST", "/session", &capabilities);
        session["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        browser
    }

    /// Loads a page.
    pub(crate) fn open(&self, url: &str) {
        self.in_session("/url", &json!({ "url": url }));
    }

    /// Runs a script in the page and returns its result.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.in_session("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Returns the visible text of an element.
    pub(crate) fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({selector:?})?.innerText ?? ''");
        self.run(&script).as_str().unwrap().to_owned()
    }

    /// Waits until an element has a text.
    pub(crate) fn wait_for(&self, selector: &str, text: &str, within: Duration) {
        until(&format!("{text:?} in {selector}"), within, || {
            self.text(selector).contains(text).then_some(())
        });
    }

    /// Sends a command of the Chrome developer tools protocol.
    pub(crate) fn command(&self, name: &str, parameters: &Value) -> Value {
        self.in_session("/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    /// Sets the window's width, and the light or dark color scheme.
    pub(crate) fn look(&self, width: u32, is_dark: bool) {
        let scheme = if is_dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.command("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
        let metrics = json!({ "width": width, "height": 844, "deviceScaleFactor": 1,
            "mobile": width < 600 });
        self.command("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Returns the current document, which works without scripts; `None` while another one is
    /// loading.
    pub(crate) fn document(&self) -> Option<String> {
        let root = self.command("DOM.getDocument", &json!({}))["root"]["nodeId"].clone();
        let command = json!({ "cmd": "DOM.getOuterHTML", "params": { "nodeId": root } });
        let path = format!("/session/{}/goog/cdp/execute", self.session);
        let html = match self.attempt("POST", &path, &command) {
            Ok(html) => html,
            Err(body) if body.contains("Could not find node") => return None,
            Err(body) => panic!("POST {path}: {body}"),
        };
        Some(html["outerHTML"].as_str().unwrap().to_owned())
    }

    fn in_session(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}{path}", self.session), body)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.attempt(method, path, body).unwrap_or_else(|body| panic!("{method} {path}: {body}"))
    }

    /// Returns the driver's response to a request. The error is the body of any response other than
    /// 200.
    fn attempt(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let response = exchange(self.address, method, path, &body.to_string());
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        if !head.starts_with("HTTP/1.1 200") {
            return Err(body.to_owned());
        }
        let mut value: Value = serde_json::from_str(body).unwrap();
        Ok(value["value"].take())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Sends one request and returns the whole response.
pub(crate) fn exchange(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    // Chromium's driver never closes the connection, so the length counts.
    let mut response = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        let read = stream.read(&mut piece).unwrap();
        response.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&response);
        let Some((head, _)) = text.split_once("\r\n\r\n") else {
            assert!(read > 0, "no response to {method} {path}: {text}");
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let length: usize = length.expect("the response has a length");
        if read == 0 || response.len() >= head.len() + 4 + length {
            return text.into_owned();
        }
    }
}

/// Returns an address that is free now.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
