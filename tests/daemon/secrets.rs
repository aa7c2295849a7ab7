//! Secrets are only where they are needed: not in the state directory, not in the log at its most
//! detailed level, not in the arguments or variables of a process, not on the guest's kernel
//! command line.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER};
use mayfly_github_sim::{Settings, Simulator};
use nix::unistd::Pid;

use super::service::{Pool, SECRET, Service};
use super::support::processes;

/// Time between two scans of all processes: short compared to the life of any that gets a secret.
const LOOK: Duration = Duration::from_millis(10);

/// Texts that must not be found, each with a description.
pub(crate) type Needles = BTreeMap<Vec<u8>, String>;

/// Adds a secret, in plain form and in forms in which bytes are dumped.
fn add_to(needles: &mut Needles, what: &str, secret: &[u8]) {
    needles.insert(secret.to_vec(), what.to_owned());
    needles.insert(BASE64_NOPAD.encode(secret).into_bytes(), format!("{what} in base64"));
    needles.insert(BASE64URL_NOPAD.encode(secret).into_bytes(), format!("{what} in base64url"));
    needles.insert(HEXLOWER.encode(secret).into_bytes(), format!("{what} in hexadecimal"));
}

/// Adds a JIT configuration: its encoded form, and the files in it, whose names come first.
pub(crate) fn needles_of(config: &str) -> Needles {
    let mut needles = Needles::new();
    let mut add = |what: &str, secret: &[u8]| add_to(&mut needles, what, secret);
    let files = BASE64.decode(config.as_bytes()).unwrap();
    let files: BTreeMap<String, String> = serde_json::from_slice(&files).unwrap();
    add("a JIT configuration", config.as_bytes());
    let parameters = &files[".credentials_rsaparams"];
    add("a runner's key", parameters.as_bytes());
    let parameters = BASE64.decode(parameters.as_bytes()).unwrap();
    let parameters: BTreeMap<String, String> = serde_json::from_slice(&parameters).unwrap();
    add("the credential of a runner", parameters["d"].as_bytes());
    needles
}

/// Returns the forms in which a secret may appear: plain, and as dumped bytes.
fn needles(service: &Service) -> Needles {
    let mut needles = Needles::new();
    // The start of any JWT, for both orders of its header.
    for header in ["{\"alg\"", "{\"typ\""] {
        needles.insert(BASE64_NOPAD.encode(header.as_bytes())[..8].into(), "a JWT".to_owned());
    }
    let mut add = |what: &str, secret: &[u8]| add_to(&mut needles, what, secret);
    add("the webhook's secret", SECRET.as_bytes());
    let pem = fs::read_to_string(service.daemon.host.root().join("app.pem")).unwrap();
    let lines: Vec<_> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = BASE64.decode(lines.concat().as_bytes()).unwrap();
    add("the App's key", &der);
    // Whole lines of PEM: parts of the key in base64. The first only has its algorithm.
    for line in lines.iter().skip(1).filter(|line| line.len() > 40) {
        add("a part of the App's key", line.as_bytes());
    }
    service.github.with(|state, _| {
        for token in state.tokens.keys() {
            add("a token", token.as_bytes());
        }
        for jwt in &state.seen_jwts {
            add("the id of a JWT", jwt.as_bytes());
        }
    });
    for config in jit_configs(&service.github) {
        needles.extend(needles_of(&config));
    }
    needles
}

/// Returns the JIT configurations that the simulator issued.
fn jit_configs(github: &Simulator) -> Vec<String> {
    let responses = github.exchanges().into_iter().map(|exchange| exchange.response);
    let parsed = responses.filter_map(|response| {
        let response: serde_json::Value = serde_json::from_str(&response).ok()?;
        Some(response["encoded_jit_config"].as_str()?.to_owned())
    });
    parsed.collect()
}

/// The arguments and variables of all processes, without duplicates.
#[derive(Default)]
struct Seen(HashSet<(String, Vec<u8>)>);

impl Seen {
    fn scan(&mut self) {
        let own = Pid::this();
        for pid in processes::all().into_iter().filter(|pid| *pid != own) {
            for name in ["cmdline", "environ"] {
                // An ended process has neither.
                let Ok(text) = fs::read(processes::file(pid, name)) else { continue };
                if !text.is_empty() {
                    self.0.insert((name.to_owned(), text));
                }
            }
        }
    }
}

/// Returns all regular files below a directory.
pub(crate) fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries.map_while(Result::ok) {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            // A file may be removed during the scan.
            let Ok(bytes) = fs::read(&path) else { continue };
            found.push((path.display().to_string(), bytes));
        }
    }
    found
}

/// Returns the secrets that were found, with their locations.
pub(crate) fn found<'a>(
    needles: &Needles,
    sources: impl IntoIterator<Item = &'a (String, Vec<u8>)>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (source, bytes) in sources {
        for (needle, what) in needles {
            if bytes.windows(needle.len()).any(|window| window == needle.as_slice()) {
                found.push(format!("{what} in {source}"));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn no_secret_is_where_it_is_not_needed() {
    let pool = Pool { trigger: "webhook", min_idle: 1, max: 2 };
    no_secret_after(2, &pool);
}

#[test]
#[ignore = "runs for minutes: twenty jobs"]
fn no_secret_is_left_by_twenty_jobs() {
    let pool = Pool { trigger: "webhook", min_idle: 1, max: 4 };
    no_secret_after(20, &pool);
}

fn no_secret_after(count: u32, pool: &Pool) {
    let mut service = Service::prepare(Settings::default(), pool);
    service.daemon.environment.push(("MAYFLY_LOG", "trace"));
    let done = AtomicBool::new(false);
    let (mut processes, mut state) = (Seen::default(), Vec::new());
    let directory = service.daemon.host.state();
    let mut jobs = Vec::new();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                processes.scan();
                std::thread::sleep(LOOK);
            }
        });
        service.serve();
        // Locations that the guest's root can read: this user's, and the kernel's.
        let look = "cat /proc/cmdline; cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; env";
        jobs.extend((0..count).map(|_| service.queue(&[look, "sleep 3"])));
        let runs = service.github.wait(super::service::JOB_TIMEOUT, |state| {
            state.jobs.values().any(|job| !job.started_runs.is_empty())
        });
        assert!(runs, "{}", service.log());
        // While a job runs.
        state.extend(files(&directory));
        service.wait_for_all(count);
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    });
    state.extend(files(&directory));
    assert!(service.daemon.stop().success());
    state.extend(files(&directory));
    state.push(("the log of serve".to_owned(), service.log().into_bytes()));
    for job in jobs {
        let log = service.github.job(job).unwrap().log;
        assert!(log.contains("console="), "the kernel's command line: {log}");
        state.push(("the log of a job".to_owned(), log.into_bytes()));
    }

    let needles = needles(&service);
    assert!(needles.len() > 40, "too few needles: {}", needles.len());
    let of_mayfly = |(_, text): &&(String, Vec<u8>)| text.windows(6).any(|part| part == b"mayfly");
    assert!(
        processes.0.iter().filter(of_mayfly).count() > 4,
        "Mayfly's processes were not scanned"
    );
    assert!(service.log().contains("TRACE"), "the log is not at its most detailed level");
    let sources = state.iter().chain(&processes.0);
    let total: usize = state.iter().map(|(_, bytes)| bytes.len()).sum();
    eprintln!(
        "{} forms of secrets sought in {} files ({total} bytes) and {} texts of processes",
        needles.len(),
        state.len(),
        processes.0.len()
    );
    assert_eq!(found(&needles, sources), Vec::<String>::new());
    // The search itself works.
    let planted = ("planted".to_owned(), format!("x{SECRET}x").into_bytes());
    assert_eq!(found(&needles, [&planted]), ["the webhook's secret in planted"]);
}
