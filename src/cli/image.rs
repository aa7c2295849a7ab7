//! `mayfly image …`: builds, shows, checks and removes images.
#![expect(clippy::print_stderr, reason = "progress and warnings are for a person")]

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::host::size::Size;
use crate::image::build::{Builder, Progress, find_agent};
use crate::image::recipe::Recipe;
use crate::image::{Image, ImageError, Manifest, Reference, Store};

/// `mayfly image`.
#[derive(Debug, Args)]
pub(super) struct ImageArguments {
    /// The image store [default: `images` in the state directory]
    #[arg(long, global = true, env = "MAYFLY_IMAGE_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: ImageCommand,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Build an image from a recipe and let its name mean it
    Build(BuildArguments),
    /// List the images of the store, the newest build of each name first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what an image is and what it was made of
    Inspect {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(value_parser = reference)]
        image: Reference,
        /// Print the manifest as it is
        #[arg(long)]
        json: bool,
    },
    /// Hash every part of an image and compare with what was built
    Verify {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image; what runs from it goes on
    Remove {
        /// NAME, the newest build, or NAME@DIGEST-PREFIX
        #[arg(required = true, value_parser = reference)]
        images: Vec<Reference>,
    },
}

/// What a build can be told beside its recipe.
#[derive(Debug, Args)]
pub(super) struct BuildArguments {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// The guest agent, a static program [default: beside `mayfly`, else in ../libexec/mayfly]
    #[arg(long, env = "MAYFLY_GUEST", value_name = "PATH")]
    agent: Option<PathBuf>,
    /// How long the build may take
    #[arg(long, default_value = "20min", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Seconds since 1970 that stand for the time of the build
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", hide = true)]
    date: Option<u64>,
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse().map_err(|error: crate::image::InvalidName| error.to_string())
}

/// Does what was asked for with the images of the store that the arguments name, else of
/// `default_store`. Data goes to standard output, everything else to standard error.
///
/// # Errors
///
/// What the image folder says, or standard output can't be written.
pub(super) fn run(arguments: ImageArguments, default_store: &Path) -> Result<(), ImageError> {
    let store = &Store::open(arguments.store.as_deref().unwrap_or(default_store));
    let mut output = io::stdout().lock();
    match arguments.command {
        ImageCommand::Build(arguments) => build(&arguments, store, &mut output),
        ImageCommand::List { json } => list(store, json, &mut output),
        ImageCommand::Inspect { image, json } => inspect(&store.find(&image)?, json, &mut output),
        ImageCommand::Verify { images, json } => {
            images.iter().try_for_each(|image| verify(store, image, json, &mut output))
        }
        ImageCommand::Remove { images } => images.iter().try_for_each(|image| {
            let digest = store.remove(image)?;
            say(&mut output, &format!("{}@{digest}", image.name))
        }),
    }
}

fn build(
    arguments: &BuildArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let recipe = Recipe::load(&arguments.recipe)?;
    let agent = find_agent(arguments.agent.as_deref())?;
    let progress = Steps::new();
    let builder = Builder {
        store,
        recipe: &recipe,
        agent: &agent,
        date: arguments.date,
        timeout: arguments.timeout,
        progress: &progress,
    };
    let result = builder.build();
    progress.finish(result.is_ok());
    let image = result?;
    say(output, &format!("{}@{}", image.name, image.digest))
}

fn list(store: &Store, json: bool, output: &mut dyn Write) -> Result<(), ImageError> {
    let listing = store.list()?;
    for error in &listing.broken {
        eprintln!("warning: {}", crate::failure::chain(error));
    }
    if json {
        let images: Vec<_> = listing
            .images
            .iter()
            .map(|(image, newest)| {
                serde_json::json!({
                    "name": image.name,
                    "digest": image.digest,
                    "newest": newest,
                    "directory": image.directory,
                    "created": image.manifest.created,
                    "bytes": total(&image.manifest),
                })
            })
            .collect();
        return say(output, &serde_json::Value::from(images).to_string());
    }
    if listing.images.is_empty() {
        eprintln!("no images in {}", store.path().display());
        return Ok(());
    }
    say(output, &format!("{:<20} {:<12} {:<20} {:>10}", "NAME", "DIGEST", "PACKAGES OF", "SIZE"))?;
    for (image, newest) in &listing.images {
        let name = if *newest { image.name.to_string() } else { format!("{} (old)", image.name) };
        let size = Size(total(&image.manifest)).to_string();
        let digest = image.digest.short();
        say(output, &format!("{name:<20} {digest:<12} {:<20} {size:>10}", date(&image.manifest)))?;
    }
    Ok(())
}

fn inspect(image: &Image, json: bool, output: &mut dyn Write) -> Result<(), ImageError> {
    let manifest = &image.manifest;
    if json {
        let text = serde_json::to_string_pretty(manifest).unwrap_or_default();
        return say(output, &text);
    }
    let mut line = |key: &str, value: &str| say(output, &format!("{key:<14}{value}"));
    line("name", image.name.as_str())?;
    line("digest", image.digest.as_str())?;
    line("directory", &image.directory.display().to_string())?;
    line("packages of", &date(manifest))?;
    line("architecture", &manifest.architecture)?;
    line("protocol", &manifest.protocol.to_string())?;
    let kernel = &manifest.kernel;
    line("kernel", &format!("{} ({} {})", kernel.release, kernel.package, kernel.version))?;
    line("arguments", &kernel.command_line)?;
    line("modules", &kernel.modules.join(" "))?;
    for part in manifest.parts.all() {
        let size = Size(part.bytes);
        line(part.file.as_str(), &format!("{size:>10}  sha256:{}", part.sha256))?;
    }
    line("suite", &manifest.inputs.suite)?;
    let agent = &manifest.inputs.agent;
    line("agent", &format!("{}  sha256:{}", agent.version, agent.sha256))?;
    for (tool, version) in &manifest.inputs.tools {
        line("made with", &format!("{tool}: {version}"))?;
    }
    line("packages", &manifest.packages.len().to_string())?;
    for package in &manifest.packages {
        line("", &format!("{} {}", package.name, package.version))?;
    }
    Ok(())
}

fn verify(
    store: &Store,
    reference: &Reference,
    json: bool,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let image = store.find(reference)?;
    store.verify(&image)?;
    if json {
        let answer = serde_json::json!({
            "name": image.name, "digest": image.digest, "verified": true,
        });
        return say(output, &answer.to_string());
    }
    say(output, &format!("{}@{} is what was built", image.name, image.digest))
}

fn total(manifest: &Manifest) -> u64 {
    manifest.parts.all().iter().map(|part| part.bytes).sum()
}

fn date(manifest: &Manifest) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(manifest.created);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn say(output: &mut dyn Write, line: &str) -> Result<(), ImageError> {
    writeln!(output, "{line}").map_err(|source| ImageError::Write {
        path: Path::new("standard output").to_owned(),
        source,
    })
}

/// Shows the steps of a build: on a terminal each with a clock while it lasts and its duration
/// afterwards, else a line with the time since the start when a step begins.
struct Steps {
    bar: Option<ProgressBar>,
    begun: Instant,
    current: Mutex<Option<(String, Instant)>>,
}

impl Steps {
    fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let template = "{spinner} {prefix} {elapsed} {wide_msg:.dim}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, begun: Instant::now(), current: Mutex::new(None) }
    }

    /// Ends the step that lasts on `bar` and begins `next`.
    fn turn(&self, bar: &ProgressBar, next: Option<&str>) {
        // A poisoned lock only means that a panic is already on its way.
        let Ok(mut current) = self.current.lock() else { return };
        if let Some((step, begun)) = current.take() {
            bar.println(format!("{step}: {:.1} s", begun.elapsed().as_secs_f64()));
        }
        *current = next.map(|step| (step.to_owned(), Instant::now()));
    }

    fn finish(&self, success: bool) {
        let line = format!("built in {:.1} s", self.begun.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => {
                if success {
                    self.turn(bar, None);
                    bar.println(line);
                }
                bar.finish_and_clear();
            }
            None if success => eprintln!("{line}"),
            None => {}
        }
    }
}

impl Progress for Steps {
    fn step(&self, step: &str) {
        match &self.bar {
            Some(bar) => {
                self.turn(bar, Some(step));
                bar.set_prefix(step.to_owned());
                bar.set_message("");
            }
            None => eprintln!("{:>6.1} s  {step}", self.begun.elapsed().as_secs_f64()),
        }
    }

    fn detail(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.to_owned());
        }
    }
}
