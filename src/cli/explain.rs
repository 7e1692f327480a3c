//! `explain`: what would this pod get here, and why?
//!
//! Owns: its own flags, and the two ways of showing a decision. Decides nothing (`select` does) and looks at the host
//! only through the `probe` it is given, and only for facts that matter and were not assumed. Called by `cli`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::config::{Config, HandlerOptions, file, quote};
use crate::select::{self, Decision, Gvisor, HostFacts, Needs, Plan, RunscFact, Runtime, SpecView, Workload};

/// The namespace that the shown command has: Kubernetes'.
const NAMESPACE: &str = "k8s.io";
/// A spec is what a tenant influences; containerd's own messages end at 16 MiB.
const MAX_SPEC: u64 = 16 << 20;

const USAGE: &str = "\
Usage: containerd-shim-beta9-v2 explain [OPTIONS]

Shows which runtime a pod would get on this node, and why. Starts nothing.

Options:
  --config FILE           the configuration [BETA9_SHIM_CONFIG, then /etc/beta9/config.yaml]
  --pool NAME             the pool that the handler pins
  --annotation KEY=VALUE  an annotation of the pod; may be repeated
  --bundle DIR            read DIR/config.json for annotations, devices, hooks and cgroup
  --assume FACT=VALUE     take a fact for granted, do not look; may be repeated
                            runsc=missing|VERSION   runsc-nvproxy=yes|no (does runsc know nvproxy)
                            kvm=yes|no              nvidia-driver=yes|no
  --json                  machine-readable
  -h, --help              this text

Exit status: 0 decided, 1 refused or the configuration is wrong, 2 wrong usage.

Example:
  containerd-shim-beta9-v2 explain --pool secure --annotation run.beam.cloud/gvisor-platform=kvm
";

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error("{0}\nTry explain --help.")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error("cannot read {}: {source}", path.display())]
    Bundle { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Refused(#[from] select::Refusal),
}

/// Runs `explain` with the arguments after its name; returns the exit status. `probe` looks up the facts it is asked for;
/// `systemd_runs` is one that costs nothing.
pub fn explain(
    args: &[OsString],
    probe: &mut dyn FnMut(&Needs, &Plan) -> HostFacts,
    systemd_runs: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> i32 {
    let request = match Request::parse(args) {
        Ok(Some(request)) => request,
        Ok(None) => return shown(out.write_all(USAGE.as_bytes()), 0),
        Err(error) => return shown(writeln!(err, "explain: {error}"), 2),
    };
    let json = request.json;
    match request.decide(probe) {
        Ok((decision, systemd_path)) => {
            let systemd_cgroup = systemd_path && systemd_runs;
            let written = if json {
                writeln!(out, "{:#}", as_json(&decision, systemd_cgroup))
            } else {
                as_text(&decision, systemd_cgroup, out)
            };
            shown(written, 0)
        }
        Err(error) if json => shown(writeln!(out, "{:#}", json!({ "error": error.to_string() })), 1),
        Err(error) => shown(writeln!(err, "refused: {error}"), 1),
    }
}

/// The exit status, unless the reader has gone away.
fn shown(written: io::Result<()>, status: i32) -> i32 {
    if written.is_ok() { status } else { 1 }
}

#[derive(Debug, Default)]
struct Request {
    config: Option<OsString>,
    pool: Option<String>,
    annotations: BTreeMap<String, String>,
    bundle: Option<PathBuf>,
    assumed: HostFacts,
    json: bool,
}

impl Request {
    /// None = help is wanted.
    fn parse(args: &[OsString]) -> Result<Option<Self>, ExplainError> {
        let mut request = Self::default();
        let mut runsc_knows_nvproxy = None;
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let text = text(arg)?;
            let (flag, attached) = match text.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(OsStr::new(value))),
                _ => (text, None),
            };
            let mut value = || {
                let next = attached.or_else(|| args.next().map(OsString::as_os_str));
                next.ok_or_else(|| ExplainError::Usage(format!("{flag} needs a value")))
            };
            match flag {
                "--config" => request.config = Some(value()?.to_owned()),
                "--pool" => request.pool = Some(self::text(value()?)?.to_owned()),
                "--bundle" => request.bundle = Some(value()?.into()),
                "--annotation" => {
                    let (key, value) = pair(flag, value()?)?;
                    request.annotations.insert(key.to_owned(), value.to_owned());
                }
                "--assume" => match pair(flag, value()?)? {
                    ("runsc", "missing") => {
                        let tried = "runsc is assumed to be missing".to_owned();
                        request.assumed.runsc = Some(RunscFact::Missing { tried });
                    }
                    ("runsc", version) => {
                        let (version, nvproxy) = (version.to_owned(), is_new_enough(version));
                        request.assumed.runsc = Some(RunscFact::Found { version, nvproxy, capabilities: nvproxy });
                    }
                    ("runsc-nvproxy", value) => runsc_knows_nvproxy = Some(truth("runsc-nvproxy", value)?),
                    ("kvm", value) => {
                        let why = || "/dev/kvm is assumed to be missing".to_owned();
                        request.assumed.kvm = Some(truth("kvm", value)?.then_some(()).ok_or_else(why));
                    }
                    ("nvidia-driver", value) => request.assumed.nvidia_driver = Some(truth("nvidia-driver", value)?),
                    (fact, _) => {
                        let known = "known: runsc, runsc-nvproxy, kvm, nvidia-driver";
                        return Err(ExplainError::Usage(format!("--assume: unknown fact {}; {known}", quote(fact))));
                    }
                },
                "--json" if attached.is_none() => request.json = true,
                "--help" | "-h" if attached.is_none() => return Ok(None),
                _ => {
                    return Err(ExplainError::Usage(format!("unknown argument {}", quote(text))));
                }
            }
        }
        if let Some(knows) = runsc_knows_nvproxy {
            let assumed = || RunscFact::Found { version: "present".into(), nvproxy: knows, capabilities: knows };
            if let RunscFact::Found { nvproxy, .. } = request.assumed.runsc.get_or_insert_with(assumed) {
                *nvproxy = knows;
            }
        }
        Ok(Some(request))
    }

    fn decide(self, probe: &mut dyn FnMut(&Needs, &Plan) -> HostFacts) -> Result<(Decision, bool), ExplainError> {
        let config = self.load()?;
        let spec = match &self.bundle {
            Some(bundle) => read_spec(&bundle.join("config.json"))?,
            None => SpecView::default(),
        };
        let mut annotations = spec.annotations();
        annotations.extend(self.annotations);
        let plan = select::plan(&config, self.pool.as_deref(), &annotations, &Workload::from_spec(&spec))?;
        let mut host = self.assumed;
        let needs = plan.needs();
        let missing = Needs {
            runsc: needs.runsc && host.runsc.is_none(),
            kvm: needs.kvm && host.kvm.is_none(),
            nvidia_driver: needs.nvidia_driver && host.nvidia_driver.is_none(),
        };
        if missing != Needs::default() {
            let found = probe(&missing, &plan);
            host.runsc = host.runsc.or(found.runsc);
            host.kvm = host.kvm.or(found.kvm);
            host.nvidia_driver = host.nvidia_driver.or(found.nvidia_driver);
        }
        Ok((plan.settle(&host)?, spec.systemd_cgroup()))
    }

    /// The same checks as for a pod: what is explained is what would happen.
    fn load(&self) -> Result<Config, ExplainError> {
        let Some(path) = &self.config else {
            return Ok(file::load(&HandlerOptions::default(), std::env::var_os(file::ENVIRONMENT))?);
        };
        let path = std::path::absolute(path).map_err(|source| ExplainError::Bundle { path: path.into(), source })?;
        Ok(file::read(&path)?)
    }
}

fn text(arg: &OsStr) -> Result<&str, ExplainError> {
    arg.to_str().ok_or_else(|| ExplainError::Usage(format!("not UTF-8: {}", quote(&arg.to_string_lossy()))))
}

fn pair<'a>(flag: &str, arg: &'a OsStr) -> Result<(&'a str, &'a str), ExplainError> {
    let text = text(arg)?;
    let whole = text.split_once('=').filter(|(key, _)| !key.is_empty());
    whole.ok_or_else(|| ExplainError::Usage(format!("{flag} wants NAME=VALUE, not {}", quote(text))))
}

fn truth(fact: &str, value: &str) -> Result<bool, ExplainError> {
    match value {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(ExplainError::Usage(format!("--assume {fact}: {} is not allowed; allowed: yes, no", quote(value)))),
    }
}

/// Whether a runsc of this version knows nvproxy, unless `runsc-nvproxy` says otherwise: the first that do are of 2023.
/// A version without a date counts as a current one.
fn is_new_enough(version: &str) -> bool {
    let digits = version.split(|c: char| !c.is_ascii_digit());
    let date = digits.filter(|run| run.len() == 8).find_map(|run| run.parse::<u32>().ok());
    date.is_none_or(|date| date >= 20_230_601)
}

fn read_spec(path: &Path) -> Result<SpecView, ExplainError> {
    let failed = |source| ExplainError::Bundle { path: path.to_owned(), source };
    let mut json = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_SPEC).read_to_end(&mut json)).map_err(failed)?;
    SpecView::from_json(&json).map_err(|error| failed(error.into()))
}

fn command(decision: &Decision, systemd_cgroup: bool) -> Vec<String> {
    let binary = decision.runtime.binary().to_owned();
    std::iter::once(binary).chain(decision.base_args(NAMESPACE, systemd_cgroup)).collect()
}

fn as_json(decision: &Decision, systemd_cgroup: bool) -> serde_json::Value {
    let (platform, nvproxy) = match &decision.runtime {
        Runtime::Runc { .. } => (None, false),
        Runtime::Gvisor(Gvisor { platform, nvproxy, .. }) => (Some(platform), *nvproxy),
    };
    json!({
        "pool": decision.pool,
        "runtime": decision.runtime.kind(),
        "platform": platform,
        "root": decision.runtime.root(),
        "nvproxy": nvproxy,
        "command": command(decision, systemd_cgroup),
        "reasons": decision.reasons,
        "warnings": decision.warnings,
    })
}

fn as_text(decision: &Decision, systemd_cgroup: bool, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "pool:      {}",
        decision.pool.as_deref().map_or("none".into(), |pool| quote(pool).bare().to_string())
    )?;
    writeln!(out, "runtime:   {}", decision.runtime.kind())?;
    if let Runtime::Gvisor(gvisor) = &decision.runtime {
        writeln!(out, "platform:  {}", gvisor.platform)?;
        writeln!(out, "nvproxy:   {}", gvisor.nvproxy)?;
    }
    writeln!(out, "root:      {}", decision.runtime.root().display())?;
    if let Some(class) = &decision.pod_runtime_class {
        writeln!(out, "pod class: {} (Kubernetes' matter)", quote(class).bare())?;
    }
    writeln!(out, "command:   {} …", command(decision, systemd_cgroup).join(" "))?;
    for (title, lines) in [("reasons", &decision.reasons), ("warnings", &decision.warnings)] {
        if !lines.is_empty() {
            writeln!(out, "{title}:")?;
            for line in lines {
                writeln!(out, "  - {line}")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
