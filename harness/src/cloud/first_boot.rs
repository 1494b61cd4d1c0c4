//! A machine's first boot: the cloud-init that platform-api sent, as it is, be it a script or a `#cloud-config` with
//! `write_files` and `runcmd`. What reaches for the internet is answered by commands of the harness's own;
//! registrations are sent over the real link.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use wopr_machine::paths::{CONTROL, TRUST, TRUST_BUNDLE};

use super::{CloudError, Conduct};
use crate::machine::{RunningMachine, Variant};

/// Five registrations that each try six times, and whatever downloads are made to take.
const LIMIT: Duration = Duration::from_secs(600);
/// In a machine's control directory.
const DIRECTORY: &str = "cloud-init";

/// The part of a `#cloud-config` that is carried out.
#[derive(Deserialize)]
struct UserData {
    #[serde(default)]
    write_files: Vec<WrittenFile>,
    #[serde(default)]
    runcmd: Vec<Command>,
}

/// A file that is there before any command runs.
#[derive(Deserialize)]
struct WrittenFile {
    path: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    encoding: Option<String>,
    #[serde(default)]
    permissions: Option<String>,
}

impl WrittenFile {
    /// What writes it.
    fn line(&self) -> Result<String, String> {
        let decode = match self.encoding.as_deref() {
            None | Some("text/plain") => "cat",
            Some("b64" | "base64") => "base64 -d",
            Some(other) => return Err(format!("{} is encoded as {other}", self.path)),
        };
        let (path, content) = (quoted(&self.path), quoted(&self.content));
        let mode = quoted(self.permissions.as_deref().unwrap_or("0644"));
        Ok(format!(
            "mkdir -p \"$(dirname {path})\" && printf %s {content} | {decode} > {path} && chmod {mode} {path}\n"
        ))
    }
}

/// A line for a shell, or the words of a command.
#[derive(Deserialize)]
#[serde(untagged)]
enum Command {
    Line(String),
    Words(Vec<String>),
}

impl Command {
    fn line(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Words(words) => {
                let words = words.iter().map(|word| quoted(word));
                words.collect::<Vec<_>>().join(" ")
            }
        }
    }
}

/// A word for a shell that means nothing to it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The script that cloud-init runs. Of a `#cloud-config` it is one line after the other, whatever the one before
/// ended with.
fn script(user_data: &str) -> Result<String, String> {
    if user_data.starts_with("#!") {
        return Ok(user_data.to_owned());
    }
    if !user_data.starts_with("#cloud-config") {
        return Err("it begins with neither #cloud-config nor #!".to_owned());
    }
    let parsed: UserData = serde_saphyr::from_str(user_data).map_err(|error| {
        // Not its own words: they show what is there, and that may be a secret.
        let place = error
            .location()
            .map(|at| format!(" (line {}, column {})", at.line(), at.column()));
        format!(
            "it is no YAML with a list of commands as runcmd{}",
            place.unwrap_or_default()
        )
    })?;
    let mut script = "#!/bin/sh\n".to_owned();
    for file in &parsed.write_files {
        script.push_str(&file.line()?);
    }
    for command in &parsed.runcmd {
        script.push_str(&command.line());
        script.push('\n');
    }
    Ok(script)
}

/// Stands in for a command that reaches for the internet.
fn stand_in(name: &str, conduct: &Conduct, variant: Variant) -> String {
    let fails = i32::from(conduct.fails.iter().any(|failing| failing == name));
    let takes = conduct.step.as_secs_f64();
    let real = match name {
        // Registrations go to platform-api, by the way that a node has; a download leaves its file. The machine dies
        // with all that its first boot runs, which is a group of its own.
        "curl" => {
            r#"case "$*" in
*/internal/gpu/register*stage=DIES_AFTER*) /usr/bin/curl "$@"; kill -s KILL 0 ;;
*/internal/gpu/register*) exec /usr/bin/curl "$@" ;;
esac
while [ $# -gt 0 ]; do [ "$1" = -o ] && file=$2; shift; done
[ -z "${file:-}" ] || { mkdir -p "$(dirname "$file")" && : > "$file"; }"#
        }
        // The images are there, and the machine's own services are what they are started as.
        "docker" => {
            r#"case "$1" in
compose | run) [ FAILS = 0 ] && START > /dev/null ;;
pull | login) ;;
*) exec /usr/bin/docker "$@" ;;
esac"#
        }
        _ => "",
    };
    let start = match variant {
        Variant::Full => "/usr/bin/docker start $(/usr/bin/docker ps --all --quiet)",
        Variant::Light => "/usr/local/sbin/wopr-machine start-services",
    };
    let dies_after = conduct.dies_after.as_deref().unwrap_or("(none)");
    let real = real
        .replace("FAILS", &fails.to_string())
        .replace("START", start)
        .replace("DIES_AFTER", &quoted(dies_after));
    format!("#!/bin/sh\n{real}\nsleep {takes}\nexit {fails}\n")
}

const STAND_INS: [&str; 5] = ["apt-get", "curl", "docker", "nvidia-ctk", "systemctl"];

/// Gives a machine what a first boot needs: cloud-init's script, the commands that stand in for the internet, and
/// the authority that platform-api is trusted by. The script holds a secret: it is the machine's own, as the
/// directory is.
fn prepare(
    machine: &RunningMachine,
    vps: &RunningMachine,
    script: &str,
    conduct: &Conduct,
) -> std::io::Result<()> {
    let directory = machine.control_directory().join(DIRECTORY);
    let bin = directory.join("bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
    for name in STAND_INS {
        write(
            &bin.join(name),
            &stand_in(name, conduct, machine.variant()),
            0o700,
        )?;
    }
    let trusted = vps.control_directory().join(TRUST).join(TRUST_BUNDLE);
    std::fs::copy(trusted, directory.join(TRUST_BUNDLE))?;
    write(&directory.join("runcmd"), script, 0o700)
}

fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Runs a machine's first boot to its end.
pub(super) async fn run(
    machine: &RunningMachine,
    vps: &RunningMachine,
    user_data: &str,
    conduct: &Conduct,
) -> Result<(), CloudError> {
    let script = script(user_data).map_err(|reason| CloudError::UserData {
        machine: machine.name().clone(),
        reason,
    })?;
    prepare(machine, vps, &script, conduct).map_err(|source| CloudError::File {
        machine: machine.name().clone(),
        action: "write cloud-init's script",
        source,
    })?;
    let here = format!("{CONTROL}/{DIRECTORY}");
    let path = format!("PATH={here}/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let trust = format!("CURL_CA_BUNDLE={here}/{TRUST_BUNDLE}");
    let script = format!("{here}/runcmd");
    let argv = ["setsid", "--wait", "env", &path, &trust, &script];
    // Whatever its commands end with, as with cloud-init: the row tells how far it came.
    machine.control().await?.run_any(&argv, LIMIT).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    const SENT: &str = "#cloud-config\nruncmd:\n  - curl -X POST 'https://p/internal/gpu/register?stage=installing_drivers' -d '{\"nodeId\":\"n\"}'\n  - apt-get update -y\n  - [touch, \"/opt/it's\"]\n  - curl -X POST 'https://p/internal/gpu/register?stage=done'\n";

    #[test]
    fn runcmd_is_run_line_by_line_as_it_was_sent() {
        let script = script(SENT).unwrap();
        let lines: Vec<_> = script.lines().skip(1).collect();
        assert_eq!(lines[1], "apt-get update -y");
        assert_eq!(lines[2], r"'touch' '/opt/it'\''s'");
        assert_eq!(lines.len(), 4);
        assert!(lines[0].contains("-d '{\"nodeId\":\"n\"}'"), "{script}");
    }

    #[test]
    fn files_are_written_before_the_commands_run() {
        let sent = "#cloud-config\nruncmd: [/opt/x]\nwrite_files:\n  - { path: /opt/x, permissions: '0755', content: \"it's\" }\n  - { path: /y, encoding: b64, content: aGk= }\n";
        let script = script(sent).unwrap();
        let lines: Vec<_> = script.lines().skip(1).collect();
        let expected = [
            r#"mkdir -p "$(dirname '/opt/x')" && printf %s 'it'\''s' | cat > '/opt/x' && chmod '0755' '/opt/x'"#,
            r#"mkdir -p "$(dirname '/y')" && printf %s 'aGk=' | base64 -d > '/y' && chmod '0644' '/y'"#,
            "/opt/x",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_script_is_run_as_it_was_sent() {
        assert_eq!(script("#!/bin/bash\necho").unwrap(), "#!/bin/bash\necho");
    }

    #[test]
    fn a_first_boot_dies_with_the_registration_of_its_last_stage() {
        let dies = Conduct::default().first_boot_dies_after("installing_docker");
        let text = stand_in("curl", &dies, Variant::Full);
        assert!(text.contains("register*stage='installing_docker'*"), "{text}");
    }

    #[test]
    fn what_is_no_cloud_config_is_refused_and_not_shown() {
        assert!(script("#include\nhttps://example.com").is_err());
        let plain = "#cloud-config\nruncmd:\n  - curl -H 'Authorization: Bearer s3cret'\n";
        let error = script(plain).unwrap_err();
        assert!(error.contains("line 3") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_command_that_is_to_fail_does() {
        let text = stand_in("apt-get", &Conduct::default().fails("apt-get"), Variant::Full);
        assert!(text.ends_with("exit 1\n"), "{text}");
        let text = stand_in("curl", &Conduct::default(), Variant::Full);
        assert!(text.ends_with("exit 0\n"), "{text}");
    }

    #[test]
    fn a_light_machine_starts_its_services_without_an_engine() {
        let light = stand_in("docker", &Conduct::default(), Variant::Light);
        assert!(light.contains("wopr-machine start-services"), "{light}");
        let full = stand_in("docker", &Conduct::default(), Variant::Full);
        assert!(full.contains("docker start"), "{full}");
    }
}
