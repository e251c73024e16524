//! Manual pages and completions of one program, out of its command line. Included by `vipd-manual` and `vipctl-manual`,
//! which are examples of cargo's kind so that the programs need nothing of this.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Writes below the directory that is the only argument, laid out as below `/usr/share`. `section` is that of the manual.
pub(crate) fn main(command: Command, section: &str) -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(share), None) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "give one argument, the directory to write to"));
    };
    complete(command.clone(), &share)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let pages = share.join("man").join(format!("man{section}"));
    fs::create_dir_all(&pages)?;
    write_pages(&command, section, &pages)
}

fn write_pages(command: &Command, section: &str, directory: &Path) -> io::Result<()> {
    Man::new(command.clone())
        .section(section)
        .source(concat!("vipd ", env!("CARGO_PKG_VERSION")))
        .manual("vipd")
        .generate_to(directory)?;
    command.get_subcommands().try_for_each(|command| write_pages(command, section, directory))
}

fn complete(mut command: Command, share: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let places = [
        (Shell::Bash, "bash-completion/completions", name.clone()),
        (Shell::Zsh, "zsh/vendor-completions", format!("_{name}")),
        (Shell::Fish, "fish/vendor_completions.d", format!("{name}.fish")),
    ];
    for (shell, directory, file) in places {
        let directory = share.join(directory);
        fs::create_dir_all(&directory)?;
        clap_complete::generate(shell, &mut command, &name, &mut fs::File::create(directory.join(file))?);
    }
    Ok(())
}
