//! `rspp package`: nodes that others wrote, as pipelines name them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use rspp_host::node::{Package as Loaded, digest_of};
use rspp_proto::spec::{PACKAGE_FILE, PackageSpec};
use serde_json::{Value, json};

use crate::{control::table, problem::Problem, terminal};

/// Pack nodes of your own as programs with a version, and see what a folder of packages has.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp package pack packages/shout     Write down what its files are, for good
  rspp package list packages/          What pipelines can name
  rspp package check packages/shout    Are its files those that were packed?

A package is a folder with a program and package.yaml. A pipeline names it as
`kind: { custom: shout@1.0.0 }`; `rspp-runtime --set packages=DIR` has it run. A file that was changed
since is refused, so a pipeline runs what it ran before, or not at all.")]
pub(crate) struct Package {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write the digests of all files of a folder into its package.yaml
    Pack {
        /// The package's folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// List the packages of a folder
    List {
        /// The folder that has the packages' folders
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare a package's files with what was packed
    Check {
        /// The package's folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

/// Most files of a package.
const MOST_FILES: usize = 4_096;

impl Package {
    pub(crate) fn run(self) -> Result<(), Problem> {
        match self.what {
            What::Pack { folder } => pack(&folder),
            What::List { folder, json } => list(&folder, json),
            What::Check { folder } => {
                let package = Loaded::load(&folder).map_err(Problem::input)?;
                terminal::print(told(&package))
            }
        }
    }
}

fn told(package: &Loaded) -> String {
    format!("{} sha256 {}", package.kind(), package.digest())
}

fn list(folder: &Path, as_json: bool) -> Result<(), Problem> {
    let found = Loaded::load_all(folder).map_err(Problem::input)?;
    if as_json {
        let told: Vec<Value> = found
            .iter()
            .map(|it| {
                json!({
                    "kind": it.kind(),
                    "digest": it.digest(),
                    "protocol": it.spec().protocol,
                    "files": it.spec().files,
                })
            })
            .collect();
        return terminal::print_json(&told);
    }
    let rows = found.iter().map(|it| {
        let spec = it.spec();
        [
            it.kind(),
            it.digest()[..16].to_owned(),
            spec.files.len().to_string(),
            spec.description.clone().unwrap_or_default(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    terminal::print(table(["KIND", "SHA-256", "FILES", "DESCRIPTION"], &rows))
}

/// Writes the digests of a folder's files into what it says of itself, whose own words stay as they are.
fn pack(folder: &Path) -> Result<(), Problem> {
    let spec = Loaded::read(folder).map_err(Problem::input)?;
    let mut files = BTreeMap::new();
    walk(folder, "", &mut files)
        .map_err(|error| Problem::input(format!("{}: {error}", folder.display())))?;
    if !files.contains_key(&spec.program) {
        return Err(Problem::input(format!(
            "{}: there is no program `{}`",
            folder.display(),
            spec.program
        )));
    }
    let spec = PackageSpec { files, ..spec };
    let path = folder.join(PACKAGE_FILE);
    let text = fs::read_to_string(&path).map_err(Problem::input)?;
    fs::write(&path, with_files(&text, &spec)).map_err(Problem::failure)?;
    let package = Loaded::load(folder).map_err(Problem::failure)?;
    terminal::print(told(&package))
}

/// The text with another list of files, which comes last.
fn with_files(text: &str, spec: &PackageSpec) -> String {
    let mut kept = String::new();
    let mut is_list = false;
    for line in text.lines() {
        let begins = !line.starts_with([' ', '\t', '#']) && !line.trim().is_empty();
        if begins {
            is_list = line.starts_with("files:");
        }
        if !is_list {
            kept += line;
            kept.push('\n');
        }
    }
    kept += "files:\n";
    for (path, digest) in &spec.files {
        // JSON's quotes are YAML's.
        let path = Value::from(path.as_str());
        writeln!(kept, "  {path}: {digest}").expect("a string takes what is written");
    }
    kept
}

/// Digests of all files below a folder but what it says of itself, by paths from the top.
fn walk(folder: &Path, at: &str, files: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(at))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(io::Error::other(format!("{}: is no text", name.display())));
        };
        let path = if at.is_empty() {
            name.to_owned()
        } else {
            format!("{at}/{name}")
        };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(folder, &path, files)?;
        } else if kind.is_file() && path != PACKAGE_FILE {
            files.insert(path, digest_of(&entry.path())?);
        } else if kind.is_symlink() {
            return Err(io::Error::other(format!(
                "{path}: is a link; pack what it leads to"
            )));
        }
        if files.len() > MOST_FILES {
            return Err(io::Error::other("more than 4,096 files"));
        }
    }
    Ok(())
}
