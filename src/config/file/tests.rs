use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::RuncOptions;
use super::*;

/// A directory that only its owner may write, gone with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("beta9-config-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        chmod(&path, 0o755);
        Self(path)
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.join("config.yaml");
        fs::write(&path, text).unwrap();
        chmod(&path, 0o644);
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn refused(path: &Path) -> String {
    read(path).unwrap_err().to_string()
}

#[test]
fn a_file_that_only_its_owner_may_write_is_read() {
    let directory = Directory::new();
    let path = directory.file("worker: {pools: {p: }}");
    assert!(read(&path).unwrap().pools.contains_key("p"));
}

#[test]
fn an_error_in_a_file_names_file_line_and_column() {
    let directory = Directory::new();
    let path = directory.file("worker:\n  containerRuntime: docker\n");
    let place = format!("{}:2:21: ", path.display());
    assert!(refused(&path).contains(&place), "{}", refused(&path));
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    let directory = Directory::new();
    let path = directory.file("");
    for mode in [0o664, 0o646, 0o666] {
        chmod(&path, mode);
        let error = refused(&path);
        assert!(error.contains(&format!("(mode {mode:04o}); chmod go-w it")), "{error}");
    }
}

#[test]
fn a_file_of_another_user_is_refused() {
    if !geteuid().is_root() {
        return; // only root can give a file away
    }
    let directory = Directory::new();
    let path = directory.file("");
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    assert!(refused(&path).contains("it belongs to user 65534; chown it to root"));
    std::os::unix::fs::chown(&path, Some(0), None).unwrap();
    std::os::unix::fs::chown(&directory.0, Some(65534), None).unwrap();
    assert!(refused(&path).contains("the directory belongs to user 65534"));
}

#[test]
fn a_directory_that_others_may_write_is_refused_unless_sticky() {
    let directory = Directory::new();
    let path = directory.file("");
    chmod(&directory.0, 0o777);
    assert!(refused(&path).contains("others may write the directory (mode 0777)"));
    chmod(&directory.0, 0o1777);
    assert!(read(&path).is_ok());
}

#[test]
fn a_link_is_as_good_as_its_target_and_its_directory() {
    let (directory, elsewhere) = (Directory::new(), Directory::new());
    let target = elsewhere.file("worker: {pools: {p: }}");
    let link = directory.0.join("link.yaml");
    symlink(&target, &link).unwrap();
    assert!(read(&link).unwrap().pools.contains_key("p"));
    chmod(&elsewhere.0, 0o777);
    assert!(refused(&link).contains("others may write the directory"));
    chmod(&elsewhere.0, 0o755);
    chmod(&directory.0, 0o777);
    assert!(refused(&link).contains("others may write the directory"));
    chmod(&directory.0, 0o755);
    chmod(&target, 0o666);
    assert!(refused(&link).contains("is not safe"));
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let directory = Directory::new();
    let fifo = directory.0.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(refused(&fifo).contains("it is not a regular file"));
    assert!(refused(&directory.0).contains("it is not a regular file"));
}

#[test]
fn a_huge_or_binary_file_is_refused() {
    let directory = Directory::new();
    let path = directory.file(&"# x\n".repeat(300_000));
    assert!(refused(&path).contains("larger than 1 MiB"));
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(refused(&path).contains("UTF-8"));
}

#[test]
fn a_relative_path_is_refused() {
    assert!(refused(Path::new("config.yaml")).contains("name it by an absolute path"));
}

#[test]
fn the_handlers_file_comes_before_the_environments_and_a_named_file_must_exist() {
    let (handlers, environments) = (Directory::new(), Directory::new());
    let first = handlers.file("worker: {pools: {first: }}");
    let second = environments.file("worker: {pools: {second: }}");
    let environment = || Some(second.clone().into_os_string());
    let node = |path: &Path| HandlerOptions { config_path: Some(path.into()), ..HandlerOptions::default() };

    assert!(load(&node(&first), environment()).unwrap().pools.contains_key("first"));
    assert!(load(&HandlerOptions::default(), environment()).unwrap().pools.contains_key("second"));
    let missing = handlers.0.join("missing.yaml");
    let error = load(&node(&missing), environment()).unwrap_err().to_string();
    assert!(
        error.contains("missing.yaml: No such file") && error.contains("correct the path that names it"),
        "{error}"
    );
    assert!(load(&HandlerOptions::default(), Some(missing.into())).is_err());
}

#[test]
fn an_inline_configuration_comes_before_every_file() {
    let inline = Some(Box::new(Config { runc: "inline".into(), ..Config::default() }));
    let options = HandlerOptions { inline, ..HandlerOptions::default() };
    assert_eq!(load(&options, Some("/missing".into())).unwrap().runc, "inline");
}

#[test]
fn runcs_own_options_choose_the_binary_of_the_files_configuration() {
    let directory = Directory::new();
    let path = directory.file("shim: {runc: crun}");
    let options = HandlerOptions {
        runc: RuncOptions { binary_name: "youki".into(), ..RuncOptions::default() },
        ..HandlerOptions::default()
    };
    assert_eq!(load(&options, Some(path.into())).unwrap().runc, "youki");
}
