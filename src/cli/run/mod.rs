//! `mayfly run -- CMD`: one command in one throwaway microVM.

mod arguments;
mod copy;
mod front;
mod plan;
mod progress;
mod terminal;
mod timings;

pub(super) use arguments::RunArguments;
pub(super) use front::run;
