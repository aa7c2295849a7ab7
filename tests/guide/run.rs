//! Runs the commands of each page, in order.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mayfly_github_sim::{App, RunnerArchive, Settings, Simulator, app_key};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::blocks::{self, Block, Environment, pages, project};
use crate::page_host::PageHost;
use crate::support::image::sha256;
use crate::support::{Running, TIMEOUT, until};

/// The time limit of a block: several emulated boots, beside other tests.
const BLOCK_TIMEOUT: Duration = Duration::from_secs(400);

/// Starts the daemon of pages without a block that does.
const SERVE: &str = "mayfly serve --config mayfly.toml";

/// Runs a block to its exit. The input ends every shell that the block opens on a terminal.
fn run(page_host: &PageHost, block: &Block) {
    let began = std::time::Instant::now();
    let mut command = page_host.script("block.sh", &block.text);
    let mut running = Running::start_with(&mut command, Stdio::piped());
    running.feed(b"exit\n".repeat(40));
    let ending = running.finish(BLOCK_TIMEOUT);
    let text = ending.text();
    let last: Vec<_> = text.lines().rev().take(40).collect();
    assert_eq!(ending.code(), 0, "{}, last line first: {last:#?}\n{ending:?}", block.location());
    eprintln!("{}: {:.1} s", block.location(), began.elapsed().as_secs_f64());
}

/// A daemon with the settings of a page and a simulated GitHub.
struct Service {
    page_host: PageHost,
    _github: Simulator,
    daemon: Option<Child>,
}

impl Service {
    fn new(blocks: &[Block]) -> Self {
        let mut page_host = PageHost::new();
        page_host.write_settings(blocks);
        let key = page_host.host.root().join("etc/github-app.pem");
        app_key::generate(&key).unwrap();
        let mut app = App::new("acme", app_key::public_key(&key).unwrap());
        "Iv23liEXAMPLE".clone_into(&mut app.client_id);
        let github = Settings {
            app: Some(app),
            tokens: vec!["ghp_simulated".to_owned()],
            runner: Some(runner(&page_host.work().join("runner.tgz"))),
            ..Settings::default()
        };
        let github = Simulator::start(github).unwrap();
        let settings = std::fs::read_to_string(page_host.work().join("mayfly.toml")).unwrap();
        if let Some((_, rest)) = settings.split_once("url = \"https://github.com") {
            let scope = rest.split('"').next().unwrap();
            page_host.variables.push(("MAYFLY_GITHUB__URL", format!("{}{scope}", github.url())));
        }
        page_host.variables.push(("MAYFLY_HOST__ALLOW_EMULATION", "true".to_owned()));
        page_host.variables.push(("MAYFLY_CONFIG", "mayfly.toml".to_owned()));
        Self { page_host, _github: github, daemon: None }
    }

    fn is_up(&self) -> bool {
        let mut status = self.page_host.script("status.sh", "mayfly status");
        Running::start(&mut status).finish(TIMEOUT).code() == 0
    }

    /// Runs a block that starts a daemon, unless one is running, and waits until the daemon
    /// responds.
    fn serve(&mut self, block: &str) {
        if self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().unwrap().is_none()) {
            return;
        }
        let log = std::fs::File::create(self.page_host.host.root().join("serve.log")).unwrap();
        let script = self.page_host.script("serve.sh", block);
        // Its own process group, as in an interactive shell.
        let mut command = Command::new("setsid");
        command.arg(script.get_program()).args(script.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        until("the daemon", TIMEOUT, || {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the daemon exited: {}\n{block}", self.log());
            self.is_up().then_some(())
        });
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.page_host.host.root().join("serve.log"));
        log.unwrap_or_default()
    }

    /// Adds the seven jobs that pages refer to. All but the last have ended.
    fn queue_jobs(&self) {
        let queue = "\
            pool=$(mayfly pools --json | jq -r '.[0].name')\n\
            for job in 1 2 3 4 5 6 7; do mayfly submit --pool \"$pool\" -- true; done\n\
            for job in 1 2 3 4 5 6; do mayfly cancel $job || true; done";
        let queued =
            Running::start(&mut self.page_host.script("queue.sh", queue)).finish(BLOCK_TIMEOUT);
        assert_eq!(queued.code(), 0, "{queued:?}\n{}", self.log());
    }
}

impl Service {
    /// Ends all jobs and the daemon. Fails if a microVM remains.
    fn finish(mut self) {
        let finish = "\
            mayfly jobs --json | jq '.[] | select(.ended == null) | .id' |\n\
                while read -r job; do mayfly cancel \"$job\" || true; done\n\
            mayfly drain";
        if self.is_up() {
            let finished =
                Running::start(&mut self.page_host.script("end.sh", finish)).finish(BLOCK_TIMEOUT);
            // The page may have drained the daemon, which then exits at any time.
            assert!(finished.code() == 0 || !self.is_up(), "{finished:?}");
        }
        if let Some(mut daemon) = self.daemon.take() {
            until("the daemon's exit", BLOCK_TIMEOUT, || daemon.try_wait().unwrap());
        }
        let mut left = self.page_host.script("left.sh", "[ \"$(mayfly ps --json)\" = '[]' ]");
        assert_eq!(Running::start(&mut left).finish(TIMEOUT).code(), 0, "microVMs remain");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Only after a failed test.
        if let Some(daemon) = &mut self.daemon {
            let _ = killpg(Pid::from_raw(i32::try_from(daemon.id()).unwrap()), Signal::SIGKILL);
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Packs the fake runner into an archive.
fn runner(path: &Path) -> RunnerArchive {
    let pack = project().join("tests/github-sim/pack-runner");
    assert!(Command::new(pack).arg(path).status().unwrap().success());
    let bytes = std::fs::read(path).unwrap();
    RunnerArchive {
        version: "2.999.0".to_owned(),
        sha256: sha256(&bytes),
        bytes,
        token: "for-the-download".to_owned(),
    }
}

/// Runs the commands of a page in each environment of this test.
fn run_page(name: &str) {
    let blocks = blocks::page_blocks(name);
    let blocks_in = |included: &[Environment]| {
        let matches =
            |block: &&Block| block.environment().is_some_and(|own| included.contains(&own));
        blocks.iter().filter(matches).collect::<Vec<_>>()
    };
    run_on_host(PageHost::new, &blocks, &blocks_in(&[Environment::Host]));
    run_on_host(PageHost::with_store, &blocks, &blocks_in(&[Environment::Store]));
    run_with_daemon(&blocks, &blocks_in(&[Environment::Daemon, Environment::Service]));
}

/// Runs blocks of a page on a new host without a daemon.
fn run_on_host(new_host: impl FnOnce() -> PageHost, page: &[Block], blocks: &[&Block]) {
    if blocks.is_empty() {
        return;
    }
    let page_host = new_host();
    page_host.write_settings(page);
    for block in blocks {
        run(&page_host, block);
    }
}

/// Runs the blocks of a page that need or start a daemon.
fn run_with_daemon(page: &[Block], blocks: &[&Block]) {
    if blocks.is_empty() {
        return;
    }
    let mut service = Service::new(page);
    let mut lacks_jobs = blocks.iter().any(|block| block.text.contains(" 7"));
    for block in blocks {
        let starts_daemon = block.environment() == Some(Environment::Daemon);
        service.serve(if starts_daemon { &block.text } else { SERVE });
        if std::mem::take(&mut lacks_jobs) {
            service.queue_jobs();
        }
        if !starts_daemon {
            run(&service.page_host, block);
        }
    }
    service.finish();
}

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        $(
            #[test]
            fn $test() {
                run_page($page);
            }
        )*

        /// All pages with a test.
        const PAGES: &[&str] = &[$($page),*];
    };
}

pages! {
    readme: "README.md",
    docker: "docs/guide/docker.md",
    egress: "docs/guide/egress.md",
    github: "docs/guide/github.md",
    image_store: "docs/guide/image-store.md",
    images: "docs/guide/images.md",
    operating: "docs/guide/operating.md",
    quick_start: "docs/guide/quick-start.md",
    security: "docs/guide/security.md",
    troubleshooting: "docs/guide/troubleshooting.md",
}

#[test]
fn no_page_is_left_out() {
    // These pages have no command for this test.
    let elsewhere = ["docs/guide/bare-metal.md", "docs/guide/compose.md", "docs/guide/README.md"];
    for page in pages() {
        if elsewhere.contains(&page.as_str()) {
            let here =
                [Environment::Host, Environment::Store, Environment::Daemon, Environment::Service];
            let mut blocks = blocks::page_blocks(&page).into_iter();
            let left =
                blocks.find(|block| block.environment().is_some_and(|own| here.contains(&own)));
            assert!(left.is_none(), "{left:?}");
        } else {
            assert!(PAGES.contains(&page.as_str()), "{page} has no test");
        }
    }
}

#[test]
#[ignore = "takes minutes"]
fn images_are_built_and_containers_run() {
    for page in pages() {
        let blocks = blocks::page_blocks(&page);
        for block in &blocks {
            match block.environment() {
                Some(Environment::Build) => run(&Service::new(&blocks).page_host, block),
                Some(Environment::LongHost) => run(&PageHost::new(), block),
                _ => {}
            }
        }
    }
}

#[test]
#[ignore = "takes minutes"]
fn what_takes_long() {
    let state = tempfile::tempdir().unwrap();
    let blocks = blocks::commands().into_iter();
    for block in blocks.filter(|block| block.environment() == Some(Environment::Long)) {
        let mut bash = Command::new("bash");
        bash.args(["-xeuo", "pipefail", "-c", &block.text]).current_dir(project());
        bash.env("MAYFLY_STATE_DIR", state.path());
        let ending = Running::start(&mut bash).finish(Duration::from_secs(3000));
        assert_eq!(ending.code(), 0, "{}\n{}\n{ending:?}", block.location(), block.text);
    }
}
