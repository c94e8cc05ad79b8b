//! Packages of npm that tests use, installed by name below `target/`, once for each list.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::python::run;

/// The folder whose `node_modules` has these packages (`ws@8.23.0`), and node to run what stands beside it. Without node or
/// the packages the test is passed over, or fails if `SHARDGATE_TEST_TOOLS=required`.
#[track_caller]
pub(crate) fn packages(packages: &[&str]) -> Option<PathBuf> {
    match install(packages) {
        Ok(folder) => Some(folder),
        Err(error) => {
            let is_required = std::env::var_os("SHARDGATE_TEST_TOOLS").is_some_and(|value| value == "required");
            assert!(!is_required, "{error}; SHARDGATE_TEST_TOOLS says that it has to be");
            eprintln!("passed over: {error}");
            None
        }
    }
}

fn install(packages: &[&str]) -> Result<PathBuf, String> {
    let name: String =
        packages.join("-").chars().map(|sign| if matches!(sign, '@' | '/') { '-' } else { sign }).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("npm-{name}"));
    let done = folder.join("done");
    if done.exists() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    // Of its own, or npm would look for one in the folders above.
    std::fs::write(folder.join("package.json"), r#"{"private":true}"#).map_err(|error| error.to_string())?;
    let mut command = Command::new("npm");
    command.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]).args(packages);
    run(command.current_dir(&folder))?;
    std::fs::write(done, "").map_err(|error| error.to_string())?;
    Ok(folder)
}
