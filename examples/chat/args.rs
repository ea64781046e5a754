//! The command line: its options, what `--help` says, and the exit codes.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, ValueEnum};
use qwen::{Device, Dry, Encoding, EngineOptions, GenerateOptions, Precision, Preset};

use super::commands;

/// How the program ends. Wrong usage is `clap`'s business, and 2.
pub(crate) mod exit {
    pub(crate) const SUCCESS: u8 = 0;
    pub(crate) const CONTEXT_FULL: u8 = 3;
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// The keys, exit codes and so on, which come after the options.
const MORE: &str = "\
Keys:
  Up, Down, Ctrl-R    earlier questions: one by one, or searched
  Tab                 completes commands, and file names after /save and /load
  Alt-Enter           a new line; so does Enter after a backslash
  \"\"\"                 begins and ends a text of several lines
  Ctrl-C              stops the answer, or drops the line; a second one ends the program
  Ctrl-D              ends the program

A text that is pasted stays whole, with its line breaks, and is sent by Enter.

Pipes:
  Without a terminal on stdin, each line is a question or a command. With --prompt, all of stdin is appended to the
  prompt after an empty line, if there is any. The first error ends the program.

Colours are used on terminals only, and not where NO_COLOR is set; --color always and --color never decide.

Exit codes:
  0    all was answered, or whoever read the output had enough of it
  1    an error, which stderr names
  2    wrong usage
  3    the conversation does not fit the context: see --drop-oldest and --context
  130  ended by Ctrl-C

Examples:
  chat --model Qwen2.5-7B-Instruct
  chat --model qwen2.5-7b-instruct-q4_k_m.gguf --system \"You are terse.\"
  git diff | chat --model Qwen2.5-7B-Instruct --prompt \"Write a commit message for this change:\"
  chat --prompt \"What is 47 + 38?\" --json";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// Chat with a Qwen2.5 model, in the terminal or from a script.
///
/// Without --prompt it is a conversation: type a question, and /help for the commands. With --prompt it answers once.
/// Answers go to stdout, everything else to stderr.
#[derive(Parser)]
#[command(
    name = "chat",
    bin_name = "chat",
    version,
    styles = STYLES,
    after_help = "--help says more: commands, keys, pipes, exit codes, examples.",
    after_long_help = format!("Commands, in a conversation:\n{}\n\n{MORE}", commands::list()),
)]
pub(crate) struct Args {
    /// A folder with a checkpoint, or a GGUF file [default: the demo model of this repository].
    #[arg(short, long, value_name = "PATH", help_heading = "Model")]
    pub(crate) model: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto", help_heading = "Model")]
    device: Device,
    /// Tokens that a conversation may have [default: the model's own context, as far as memory goes].
    #[arg(long, value_name = "TOKENS", help_heading = "Model")]
    context: Option<usize>,
    /// Stretch the context by this factor (YaRN).
    #[arg(long, value_name = "FACTOR", help_heading = "Model")]
    yarn: Option<f64>,
    /// Stretch the context by up to this factor, for conversations that need it alone.
    #[arg(long, value_name = "FACTOR", conflicts_with = "yarn", help_heading = "Model")]
    auto_yarn: Option<f64>,
    /// Compute with f32 activations and K/V.
    #[arg(long, help_heading = "Model")]
    exact: bool,
    /// How K/V is stored: f32, f16 or q8_0 [default: as the precision has it].
    #[arg(long, value_name = "ENCODING", help_heading = "Model")]
    kv: Option<Encoding>,
    /// Threads that compute [default: one for each physical core].
    #[arg(long, help_heading = "Model")]
    threads: Option<usize>,

    /// Answer this and end. Text on stdin (a pipe or a file) is appended to it.
    #[arg(short, long, value_name = "TEXT", help_heading = "Conversation")]
    pub(crate) prompt: Option<String>,
    /// The system message [default: the template's own].
    #[arg(short, long, value_name = "TEXT", help_heading = "Conversation")]
    pub(crate) system: Option<String>,
    /// Go on with a conversation that was saved.
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    pub(crate) load: Option<PathBuf>,
    /// Tools that the model may call: a JSON list, in the form of OpenAI's API. Nothing is run; --json has the calls.
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    pub(crate) tools: Option<PathBuf>,
    /// Drop the oldest turns when the context is full, instead of asking (or failing, in a pipe).
    #[arg(long, help_heading = "Conversation")]
    pub(crate) drop_oldest: bool,
    /// Keep what was typed in this file, to be recalled the next time. Without it nothing is kept.
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    pub(crate) history: Option<PathBuf>,

    /// Tokens of an answer at most.
    #[arg(long, value_name = "TOKENS", help_heading = "Answers")]
    max_new_tokens: Option<usize>,
    /// How freely tokens are drawn; 0 takes the most likely one [this and others below, default: as the model says].
    #[arg(long, help_heading = "Answers")]
    temperature: Option<f32>,
    /// Draw among this many of the most likely tokens.
    #[arg(long, value_name = "COUNT", help_heading = "Answers")]
    top_k: Option<usize>,
    /// Draw among the most likely tokens that have this probability together.
    #[arg(long, value_name = "SHARE", help_heading = "Answers")]
    top_p: Option<f32>,
    /// Draw among tokens at least this fraction as probable as the most likely one.
    #[arg(long, value_name = "SHARE", help_heading = "Answers")]
    min_p: Option<f32>,
    /// Make tokens that were used less likely, if above 1.
    #[arg(long, value_name = "FACTOR", help_heading = "Answers")]
    repetition_penalty: Option<f32>,
    /// Make tokens that the answer has less likely.
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true, help_heading = "Answers")]
    presence_penalty: Option<f32>,
    /// Make tokens less likely for each time that the answer has them.
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true, help_heading = "Answers")]
    frequency_penalty: Option<f32>,
    /// Make it less likely that whole sequences repeat (DRY); 0.8 is usual.
    #[arg(long, value_name = "MULTIPLIER", help_heading = "Answers")]
    dry: Option<f32>,
    /// Whose order of stages and meaning of penalties: transformers, vllm or llama_cpp.
    #[arg(long, default_value_t, help_heading = "Answers")]
    preset: Preset,
    /// Seed of the draws: the same one gives the same answer [default: a new one for each answer; --json names it].
    #[arg(long, help_heading = "Answers")]
    seed: Option<u64>,

    /// Print one JSON object for each answer, on a line of its own: text, finish_reason, stats, and tool_calls if there
    /// are any.
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    /// Print answers, warnings and errors, and nothing else.
    #[arg(short, long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// When to use colours.
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Output")]
    pub(crate) color: Color,
}

/// When to use colours.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On terminals, unless NO_COLOR or CLICOLOR=0 is set; everywhere with CLICOLOR_FORCE.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl Args {
    pub(crate) fn engine_options(&self) -> EngineOptions {
        let mut options = EngineOptions::new().device(self.device.clone());
        if self.exact {
            options = options.precision(Precision::Exact);
        }
        if let Some(encoding) = self.kv {
            options = options.kv_encoding(encoding);
        }
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        if let Some(context) = self.context {
            options = options.context(context);
        }
        if let Some(factor) = self.yarn {
            options = options.yarn(factor);
        }
        if let Some(factor) = self.auto_yarn {
            options = options.auto_yarn(factor);
        }
        options
    }

    pub(crate) fn generate_options(&self) -> GenerateOptions {
        let mut options = GenerateOptions::new().preset(self.preset);
        options.max_new_tokens = self.max_new_tokens;
        options.temperature = self.temperature;
        options.top_k = self.top_k;
        options.top_p = self.top_p;
        options.min_p = self.min_p;
        options.repetition_penalty = self.repetition_penalty;
        options.presence_penalty = self.presence_penalty;
        options.frequency_penalty = self.frequency_penalty;
        options.dry = self.dry.map(Dry::new);
        options.seed = self.seed;
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn help_names_commands_keys_and_exit_codes() {
        let help = Args::command().render_long_help().to_string();
        for word in ["/retry", "/save FILE", "Alt-Enter", "Exit codes:", "130", "--drop-oldest", "NO_COLOR"] {
            assert!(help.contains(word), "{word} is not in:\n{help}");
        }
    }

    #[test]
    fn options_that_were_not_given_are_left_to_the_model() {
        let args = Args::parse_from(["chat"]);
        assert_eq!(args.generate_options(), GenerateOptions::new());
        let args = Args::parse_from(["chat", "--top-k", "5", "--min-p", "0.1", "--seed", "3"]);
        let options = args.generate_options();
        assert_eq!((options.top_k, options.min_p, options.seed), (Some(5), Some(0.1), Some(3)));
    }
}
