//! The simulator as a program, for `scripts/demo` and manual use.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mayfly_github_sim::{App, Hook, Settings, Simulator, app_key, demo};

/// Simulates GitHub Actions until SIGTERM or SIGINT.
#[derive(Parser)]
struct Arguments {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:8765")]
    listen: SocketAddr,
    /// The App's private key, whose public half verifies tokens; generated if the file is missing.
    #[arg(long, value_name = "FILE")]
    app_key: Option<PathBuf>,
    /// The owner of the repositories.
    #[arg(long, default_value = "octo")]
    owner: String,
    /// A personal access token with all permissions.
    #[arg(long, value_name = "TOKEN")]
    token: Vec<String>,
    /// The URL in responses, if not the listening address.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The URL for runners, if not the same.
    #[arg(long, value_name = "URL")]
    runner_url: Option<String>,
    /// The URL that webhooks are sent to.
    #[arg(long, value_name = "URL", requires = "webhook_secret_file")]
    webhook: Option<String>,
    /// The file with the webhook secret; trailing white space is ignored.
    #[arg(long, value_name = "FILE")]
    webhook_secret_file: Option<PathBuf>,
    /// Queue this many jobs, print their progress, and exit at once with an error if one fails.
    #[arg(long, value_name = "JOBS")]
    demo: Option<usize>,
    /// A label of the --demo jobs.
    #[arg(long, value_name = "LABEL", default_value = "self-hosted")]
    demo_label: Vec<String>,
    /// The time limit of the --demo jobs in seconds; emulation is slow.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    demo_patience: u64,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a program for tests talks to its caller")]
fn print(text: &str) {
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
    print(&format!("listening on {}", simulator.url()));
    if let Some(jobs) = arguments.demo {
        let timeout = std::time::Duration::from_secs(arguments.demo_patience);
        if !demo::run(&simulator, jobs, &arguments.demo_label, timeout, print) {
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
