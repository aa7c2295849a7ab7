//! The commands of each page, in order.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mayfly_github_sim::{App, RunnerArchive, Settings, Simulator, app_key};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::blocks::{self, Block, Setting, pages, project};
use crate::place::Place;
use crate::support::image::sha256;
use crate::support::{PATIENCE, Running, until};

/// How long a block may take: several boots, in emulation, behind others.
const BLOCK: Duration = Duration::from_secs(400);

/// Starts a daemon where no block does.
const SERVE: &str = "mayfly serve --config mayfly.toml";

/// Runs a block to its end. At a terminal there is somebody who wants to leave every shell.
fn run(place: &Place, block: &Block) {
    let began = std::time::Instant::now();
    let mut command = place.script("block.sh", &block.text);
    let mut running = Running::start_with(&mut command, Stdio::piped());
    running.feed(b"exit\n".repeat(40));
    let ending = running.finish(BLOCK);
    let text = ending.text();
    let last: Vec<_> = text.lines().rev().take(40).collect();
    assert_eq!(ending.code(), 0, "{}, the last line first: {last:#?}\n{ending:?}", block.place());
    eprintln!("{}: {:.1} s", block.place(), began.elapsed().as_secs_f64());
}

/// A daemon with the settings of a page, which thinks that a simulator is GitHub.
struct Service {
    place: Place,
    _github: Simulator,
    daemon: Option<Child>,
}

impl Service {
    fn new(blocks: &[Block]) -> Self {
        let mut place = Place::new();
        place.settle(blocks);
        let key = place.host.root().join("etc/github-app.pem");
        app_key::generate(&key).unwrap();
        let mut app = App::new("acme", app_key::public_key(&key).unwrap());
        "Iv23liEXAMPLE".clone_into(&mut app.client_id);
        let github = Settings {
            app: Some(app),
            tokens: vec!["ghp_simulated".to_owned()],
            runner: Some(runner(&place.work().join("runner.tgz"))),
            ..Settings::default()
        };
        let github = Simulator::start(github).unwrap();
        let settings = std::fs::read_to_string(place.work().join("mayfly.toml")).unwrap();
        if let Some((_, rest)) = settings.split_once("url = \"https://github.com") {
            let scope = rest.split('"').next().unwrap();
            place.variables.push(("MAYFLY_GITHUB__URL", format!("{}{scope}", github.url())));
        }
        place.variables.push(("MAYFLY_HOST__ALLOW_EMULATION", "true".to_owned()));
        place.variables.push(("MAYFLY_CONFIG", "mayfly.toml".to_owned()));
        Self { place, _github: github, daemon: None }
    }

    fn answers(&self) -> bool {
        let mut status = self.place.script("status.sh", "mayfly status");
        Running::start(&mut status).finish(PATIENCE).code() == 0
    }

    /// Starts what ends with a daemon, unless there is one, and waits until that answers.
    fn serve(&mut self, block: &str) {
        if self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().unwrap().is_none()) {
            return;
        }
        let log = std::fs::File::create(self.place.host.root().join("serve.log")).unwrap();
        let script = self.place.script("serve.sh", block);
        // A process group of its own, as a shell that a person uses makes one.
        let mut command = Command::new("setsid");
        command.arg(script.get_program()).args(script.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        until("the daemon", PATIENCE, || {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "no daemon: {}\n{block}", self.log());
            self.answers().then_some(())
        });
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.place.host.root().join("serve.log"));
        log.unwrap_or_default()
    }

    /// Gives the ledger the seven jobs that pages speak of; all but the last are over.
    fn queue(&self) {
        let queue = "\
            pool=$(mayfly pools --json | jq -r '.[0].name')\n\
            for job in 1 2 3 4 5 6 7; do mayfly submit --pool \"$pool\" -- true; done\n\
            for job in 1 2 3 4 5 6; do mayfly cancel $job || true; done";
        let queued = Running::start(&mut self.place.script("queue.sh", queue)).finish(BLOCK);
        assert_eq!(queued.code(), 0, "{queued:?}\n{}", self.log());
    }
}

impl Service {
    /// Ends what is under way, and fails if anything is left.
    fn finish(mut self) {
        let finish = "\
            mayfly jobs --json | jq '.[] | select(.ended == null) | .id' |\n\
                while read -r job; do mayfly cancel \"$job\" || true; done\n\
            mayfly drain";
        if self.answers() {
            let finished = Running::start(&mut self.place.script("end.sh", finish)).finish(BLOCK);
            // The page may have drained it, and it ended in between.
            assert!(finished.code() == 0 || !self.answers(), "{finished:?}");
        }
        if let Some(mut daemon) = self.daemon.take() {
            until("the daemon's end", BLOCK, || daemon.try_wait().unwrap());
        }
        let mut left = self.place.script("left.sh", "[ \"$(mayfly ps --json)\" = '[]' ]");
        assert_eq!(Running::start(&mut left).finish(PATIENCE).code(), 0, "microVMs are left");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Only where the test has failed.
        if let Some(daemon) = &mut self.daemon {
            let _ = killpg(Pid::from_raw(i32::try_from(daemon.id()).unwrap()), Signal::SIGKILL);
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// The stand-in for GitHub's runner, packed into a file.
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

/// Runs the commands of a page that can be run here.
fn page(name: &str) {
    let blocks = blocks::of(name);
    let of = |settings: &[Setting]| {
        let is = |block: &&Block| block.setting().is_some_and(|own| settings.contains(&own));
        blocks.iter().filter(is).collect::<Vec<_>>()
    };
    run_at(Place::new, &blocks, &of(&[Setting::Host]));
    run_at(Place::with_store, &blocks, &of(&[Setting::Store]));
    serve(&blocks, &of(&[Setting::Daemon, Setting::Service]));
}

/// Runs blocks of a page that are all there is at a place.
fn run_at(place: impl FnOnce() -> Place, page: &[Block], blocks: &[&Block]) {
    if blocks.is_empty() {
        return;
    }
    let place = place();
    place.settle(page);
    for block in blocks {
        run(&place, block);
    }
}

/// Runs the blocks of a page that want a daemon, among them those that start it.
fn serve(page: &[Block], blocks: &[&Block]) {
    if blocks.is_empty() {
        return;
    }
    let mut service = Service::new(page);
    let mut lacks_jobs = blocks.iter().any(|block| block.text.contains(" 7"));
    for block in blocks {
        let begins = block.setting() == Some(Setting::Daemon);
        service.serve(if begins { &block.text } else { SERVE });
        if std::mem::take(&mut lacks_jobs) {
            service.queue();
        }
        if !begins {
            run(&service.place, block);
        }
    }
    service.finish();
}

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        $(
            #[test]
            fn $test() {
                page($page);
            }
        )*

        /// The pages that a test runs.
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
    // Elsewhere: these have no command that is run on a host.
    let elsewhere = ["docs/guide/bare-metal.md", "docs/guide/compose.md", "docs/guide/README.md"];
    for page in pages() {
        if elsewhere.contains(&page.as_str()) {
            let here = [Setting::Host, Setting::Store, Setting::Daemon, Setting::Service];
            let mut blocks = blocks::of(&page).into_iter();
            let left = blocks.find(|block| block.setting().is_some_and(|own| here.contains(&own)));
            assert!(left.is_none(), "{left:?}");
        } else {
            assert!(PAGES.contains(&page.as_str()), "{page} is not run");
        }
    }
}

#[test]
#[ignore = "takes minutes"]
fn images_are_built_and_containers_run() {
    for page in pages() {
        let blocks = blocks::of(&page);
        for block in &blocks {
            match block.setting() {
                Some(Setting::Build) => run(&Service::new(&blocks).place, block),
                Some(Setting::LongHost) => run(&Place::new(), block),
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
    for block in blocks.filter(|block| block.setting() == Some(Setting::Long)) {
        let mut bash = Command::new("bash");
        bash.args(["-xeuo", "pipefail", "-c", &block.text]).current_dir(project());
        bash.env("MAYFLY_STATE_DIR", state.path());
        let ending = Running::start(&mut bash).finish(Duration::from_secs(3000));
        assert_eq!(ending.code(), 0, "{}\n{}\n{ending:?}", block.place(), block.text);
    }
}
