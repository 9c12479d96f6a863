//! `hive-gateway extras`: shell completions and manual pages, made of the very definition of the commands.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate_to};

use super::Cli;

/// The name that shells know.
const NAME: &str = "hive-gateway";
/// Where Debian's shells look; the names of the files are each shell's own.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes `completions/` for bash, zsh and fish, and `man/` with a page for each command.
#[derive(Debug, Args)]
pub struct ExtrasArgs {
    /// The directory to write to; it is made.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Writes all of it.
///
/// # Errors
/// The directory can't be written.
pub fn run(args: &ExtrasArgs) -> io::Result<()> {
    let completions = args.directory.join("completions");
    let manual = args.directory.join("man");
    fs::create_dir_all(&completions)?;
    fs::create_dir_all(&manual)?;
    let mut command = Cli::command();
    for shell in SHELLS {
        generate_to(shell, &mut command, NAME, &completions)?;
    }
    // One that has not been built, so that `help` gets no pages. A page for each command, named as git's are: hive-gateway-pki-server.1.
    clap_mangen::generate_to(Cli::command(), &manual)
}
