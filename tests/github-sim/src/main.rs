//! The simulator as a program, for `scripts/demo` and for trying things by hand.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mayfly_github_sim::{App, Hook, Settings, Simulator, app_key, demo};

/// Stands in for GitHub Actions until it gets SIGTERM or SIGINT.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8765")]
    listen: SocketAddr,
    /// The App's private key, whose public half tokens are checked with; made if it isn't there.
    #[arg(long, value_name = "FILE")]
    app_key: Option<PathBuf>,
    /// Whose repositories these are.
    #[arg(long, default_value = "octo")]
    owner: String,
    /// A personal access token that is good for everything.
    #[arg(long, value_name = "TOKEN")]
    token: Vec<String>,
    /// What it says that its address is, if not the one that it listens on.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Where runners reach this GitHub, if not at its address.
    #[arg(long, value_name = "URL")]
    runner_url: Option<String>,
    /// Where webhooks go.
    #[arg(long, value_name = "URL", requires = "webhook_secret_file")]
    webhook: Option<String>,
    /// The file with what webhooks are signed with; white space at its end doesn't count.
    #[arg(long, value_name = "FILE")]
    webhook_secret_file: Option<PathBuf>,
    /// Queue so many jobs, tell how they go, and fail at once if one of them does.
    #[arg(long, value_name = "JOBS")]
    demo: Option<usize>,
    /// A label that runners must have for the jobs of --demo.
    #[arg(long, value_name = "LABEL", default_value = "self-hosted")]
    demo_label: Vec<String>,
    /// How many seconds the jobs of --demo may take; emulation is slow.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    demo_patience: u64,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a program for tests talks to its caller")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn run(arguments: Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let app = arguments.app_key.map(|path| -> Result<App, app_key::KeyError> {
        if !path.exists() {
            app_key::generate(&path)?;
        }
        Ok(App::new(&arguments.owner, app_key::public_key(&path)?))
    });
    let secret = arguments.webhook_secret_file.map(std::fs::read_to_string).transpose()?;
    let hook = arguments.webhook.zip(secret);
    let settings = Settings {
        app: app.transpose()?,
        tokens: arguments.token,
        hook: hook.map(|(url, secret)| Hook { url, secret: secret.trim_end().to_owned() }),
        url: arguments.url,
        runner_url: arguments.runner_url,
        ..Settings::default()
    };
    let simulator = Simulator::start_at(arguments.listen, settings)?;
    say(&format!("listening on {}", simulator.url()));
    if let Some(jobs) = arguments.demo {
        let patience = std::time::Duration::from_secs(arguments.demo_patience);
        if !demo::run(&simulator, jobs, &arguments.demo_label, patience, say) {
            return Ok(false);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted,
        }
    })?;
    drop(simulator);
    Ok(true)
}
