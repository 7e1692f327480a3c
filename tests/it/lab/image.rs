//! The image of the lab, made without a registry: a static busybox and what a shell expects around it, as an OCI layout in
//! an archive for `ctr images import`, and as a directory for bundles of our own.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::packages::Suite;

/// The image's name in every daemon.
pub const IMAGE: &str = "docker.io/library/lab:latest";

/// The same files under another name, for pods to hold their namespaces open with.
pub const PAUSE: &str = "docker.io/library/pause:latest";

/// The image's files on disk.
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// Makes the image below `dir`.
    pub fn build(dir: &Path) -> Self {
        let image = Self { dir: dir.into() };
        image.furnish();
        image.pack();
        image
    }

    /// The archive to import.
    pub fn archive(&self) -> PathBuf {
        self.dir.join("lab.tar")
    }

    /// The root file system as one archive.
    pub fn layer(&self) -> PathBuf {
        self.dir.join("layer.tar")
    }

    /// Fills an existing directory with the image's files.
    pub fn copy_rootfs(&self, into: &Path) {
        let status = Command::new("cp").arg("-a").arg(self.rootfs().join(".")).arg(into).status().unwrap();
        assert!(status.success(), "could not copy the image's files");
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    fn furnish(&self) {
        let root = self.rootfs();
        for dir in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n")
            .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
        let busybox = root.join("bin/busybox");
        fs::copy(Suite::Bookworm.program("busybox"), &busybox).unwrap();
        let applets = Command::new(&busybox).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(applets).unwrap().lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }

    fn pack(&self) {
        let layout = self.dir.join("layout");
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        archive(&self.rootfs(), &self.layer());

        let layer = fs::read(self.layer()).unwrap();
        let layer = Blob::store(&blobs, "application/vnd.oci.image.layer.v1.tar", &layer);
        let manifests = [(IMAGE, json!(["sh"])), (PAUSE, json!(["sleep", "2147483647"]))].map(|(name, command)| {
            let config = json!({
                "architecture": architecture(),
                "os": "linux",
                "config": {"Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/"},
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
            });
            let config = Blob::store(&blobs, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
            let manifest =
                json!({"schemaVersion": 2, "config": config.descriptor(), "layers": [layer.descriptor()]}).to_string();
            let mut manifest =
                Blob::store(&blobs, "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes()).descriptor();
            manifest["annotations"] =
                json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"});
            manifest
        });
        fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": manifests}).to_string()).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        archive(&layout, &self.archive());
    }
}

/// A piece of an OCI layout.
struct Blob {
    kind: &'static str,
    digest: String,
    size: usize,
}

impl Blob {
    fn store(blobs: &Path, kind: &'static str, bytes: &[u8]) -> Self {
        let hash = Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        fs::write(blobs.join(&hash), bytes).unwrap();
        Self { kind, digest: format!("sha256:{hash}"), size: bytes.len() }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.digest, "size": self.size})
    }
}

fn archive(dir: &Path, into: &Path) {
    let status = Command::new("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"])
        .arg(into)
        .arg("-C")
        .arg(dir)
        .arg(".")
        .status();
    assert!(status.unwrap().success(), "could not pack {}", dir.display());
}

/// This machine's architecture in Go's words, which are OCI's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
