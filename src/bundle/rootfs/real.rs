//! Real mounts, each test's in a mount namespace of its own. They take root, as the shim does.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command as Process;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs a test on a thread whose mounts nobody else sees, in a directory of it alone. Where that is forbidden there is
/// nothing to be tried.
fn in_private(test: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        // A mount namespace takes along the thread's working directory.
        if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNS).is_err() {
            return;
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(none, "/mnt", Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).unwrap();
        test(Path::new("/mnt"));
    };
    std::thread::spawn(run).join().unwrap();
}

fn request(kind: &str, source: &Path, target: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.into(),
        source: source.to_str().unwrap().into(),
        target: target.into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    }
}

fn try_mount(requests: &[Mount], rootfs: &Path) -> Result<(), MountError> {
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    event_loop.block_on(mount_all(requests, rootfs, &Reaper::default()))
}

fn directory(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    path
}

/// The mount points below a directory.
fn points(below: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().filter_map(mount_point).filter(|point| point.starts_with(below) && point != below).collect()
}

fn nothing_is_left(bundle: &Path) {
    unmount_all(&bundle.join("rootfs"));
    assert!(points(bundle).is_empty(), "{:?}", points(bundle));
    assert!(!bundle.join(SCRATCH).exists());
}

#[test]
fn a_mount_of_any_name_keeps_no_other_from_being_unmounted() {
    use std::os::unix::ffi::OsStrExt;
    in_private(|dir| {
        // mountinfo shows it as it is: no text.
        let odd = directory(dir.join(std::ffi::OsStr::from_bytes(b"\xff")));
        mount(Some(&odd), &odd, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let source = directory(dir.join("source"));
        try_mount(&[request("bind", &source, "", &["rbind"])], &dir.join("b/rootfs")).unwrap();
        unmount_all(&dir.join("b/rootfs"));
        let table = String::from_utf8_lossy(&fs::read("/proc/thread-self/mountinfo").unwrap()).into_owned();
        assert!(!table.contains(" /mnt/b/rootfs "), "{table}");
    });
}

#[test]
fn a_bind_is_read_only_where_it_was_asked_to_be() {
    in_private(|dir| {
        let source = directory(dir.join("source"));
        fs::create_dir(source.join("below")).unwrap();
        mount(None::<&str>, &source.join("below"), Some("tmpfs"), MsFlags::MS_NODEV, None::<&str>).unwrap();
        let (bundle, rootfs) = (dir.join("b"), dir.join("b/rootfs"));
        for (options, top, below) in [
            (&["rbind", "rw"][..], true, true),
            (&["rbind", "ro"], false, true),
            (&["rbind", "rro"], false, false),
            (&["rbind", "ro", "rprivate"], false, true),
        ] {
            try_mount(&[request("bind", &source, "", options)], &rootfs).unwrap();
            assert_eq!(fs::metadata(&rootfs).unwrap().mode() & 0o777, fs::metadata(&source).unwrap().mode() & 0o777);
            assert_eq!(fs::write(rootfs.join("x"), "").is_ok(), top, "{options:?}");
            assert_eq!(fs::write(rootfs.join("below/x"), "").is_ok(), below, "{options:?}");
            nothing_is_left(&bundle);
        }
        assert_eq!(fs::metadata(&rootfs).unwrap().mode() & 0o777, 0o711);
        assert!(fs::write(source.join("x"), "").is_ok(), "the source was changed");
    });
}

#[test]
fn a_bind_keeps_the_flags_of_its_source() {
    in_private(|dir| {
        let (source, rootfs) = (directory(dir.join("source")), dir.join("b/rootfs"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(None::<&str>, &source, Some("tmpfs"), flags, None::<&str>).unwrap();
        try_mount(&[request("bind", &source, "", &["bind", "ro", "exec"])], &rootfs).unwrap();
        let has = flags_of(&rootfs).unwrap();
        assert!(has.contains(MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV), "{has:?}");
        assert!(!has.contains(MsFlags::MS_NOEXEC), "{has:?}");
        nothing_is_left(&dir.join("b"));
    });
}

#[test]
fn a_mount_can_be_inside_of_an_earlier_one() {
    in_private(|dir| {
        let (source, other, rootfs) =
            (directory(dir.join("source/etc/in")), directory(dir.join("other")), dir.join("b/rootfs"));
        fs::write(other.join("file"), "other").unwrap();
        let requests = [
            request("bind", source.parent().unwrap().parent().unwrap(), "", &["rbind"]),
            request("bind", &other, "/etc/in", &["bind", "ro"]),
        ];
        try_mount(&requests, &rootfs).unwrap();
        assert_eq!(fs::read_to_string(rootfs.join("etc/in/file")).unwrap(), "other");
        assert!(fs::write(rootfs.join("etc/in/x"), "").is_err());
        assert!(fs::write(rootfs.join("etc/x"), "").is_ok());
        nothing_is_left(&dir.join("b"));
        // The second fails, and the first goes.
        let requests = [requests[0].clone(), request("bind", &dir.join("missing"), "", &["bind"])];
        let error = try_mount(&requests, &rootfs).unwrap_err().to_string();
        assert!(error.contains("/mnt/missing") && error.contains("/mnt/b/rootfs"), "{error}");
        assert!(points(&dir.join("b")).is_empty());
    });
}

/// An overlay's layers, each with a file that has its number and one that all have.
fn layers(paths: &[PathBuf]) -> String {
    for (number, path) in paths.iter().enumerate() {
        directory(path.clone());
        fs::write(path.join(number.to_string()), "").unwrap();
        fs::write(path.join("top"), number.to_string()).unwrap();
    }
    paths.iter().map(|path| path.to_str().unwrap().replace(':', "\\:")).collect::<Vec<_>>().join(":")
}

#[test]
fn overlays_of_any_length_have_all_their_layers_in_order() {
    in_private(|dir| {
        let long = "x".repeat(100);
        let shapes: [fn(&Path, &str, usize) -> PathBuf; 3] = [
            |dir, _, n| dir.join(format!("few/{n}")),
            |dir, long, n| dir.join(format!("common/{long}/{n}/fs")),
            // Nothing that they have in common makes them short enough.
            |dir, long, n| dir.join(format!("apart/{n}:{long}")),
        ];
        for (shape, count) in shapes.into_iter().zip([3, 60, 60]) {
            let lower = layers(&(0..count).map(|n| shape(dir, &long, n)).collect::<Vec<_>>());
            let (upper, work) = (directory(dir.join("upper")), directory(dir.join("work")));
            let (bundle, rootfs) = (dir.join("b"), dir.join("b/rootfs"));
            let options = [
                format!("lowerdir={lower}"),
                format!("upperdir={}", upper.display()),
                format!("workdir={}", work.display()),
            ];
            let options: Vec<_> = options.iter().map(String::as_str).collect();
            try_mount(&[request("overlay", Path::new("overlay"), "", &options)], &rootfs).unwrap();
            assert_eq!(points(&bundle), std::slice::from_ref(&rootfs));
            assert_eq!(fs::read_to_string(rootfs.join("top")).unwrap(), "0");
            assert!((0..count).all(|n| rootfs.join(n.to_string()).exists()));
            fs::write(rootfs.join("new"), "").unwrap();
            assert!(upper.join("new").exists());
            nothing_is_left(&bundle);
            fs::remove_file(upper.join("new")).unwrap();
        }
    });
}

const MAP: [&str; 2] = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];

/// Whether this kernel can map a tmpfs (since Linux 6.3).
fn maps(error: &MountError) -> bool {
    !matches!(error, MountError::Map { error, .. } if error.raw_os_error() == Some(Errno::EINVAL as i32))
}

#[test]
fn mapped_overlays_and_binds_show_files_as_the_containers() {
    in_private(|dir| {
        let (bundle, rootfs) = (dir.join("b"), dir.join("b/rootfs"));
        let lower = layers(&[dir.join("1"), dir.join("2")]);
        chown(dir.join("1/top"), Some(7), Some(8)).unwrap();
        let (upper, work) = (directory(dir.join("upper")), directory(dir.join("work")));
        let options = [
            format!("lowerdir={lower}"),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        let options: Vec<_> = options.iter().map(String::as_str).chain(MAP).collect();
        let owner = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
        match try_mount(&[request("overlay", Path::new("overlay"), "", &options)], &rootfs) {
            Err(error) if !maps(&error) => return,
            result => result.unwrap(),
        }
        assert_eq!((owner(&rootfs.join("top")), owner(&rootfs.join("1"))), ((100_007, 200_008), (100_000, 200_000)));
        assert_eq!(points(&bundle), std::slice::from_ref(&rootfs));
        nothing_is_left(&bundle);

        for options in [&["bind"][..], &["rbind", "ro"]] {
            let options = [options, &MAP].concat();
            try_mount(&[request("bind", &dir.join("1"), "", &options)], &rootfs).unwrap();
            assert_eq!(owner(&rootfs.join("top")), (100_007, 200_008));
            assert_eq!(
                fs::set_permissions(rootfs.join("top"), fs::Permissions::from_mode(0o600)).is_ok(),
                options[0] == "bind"
            );
            assert_eq!(points(&bundle), std::slice::from_ref(&rootfs));
            nothing_is_left(&bundle);
        }
        let inner = [
            request("bind", &dir.join("2"), "", &["bind"]),
            request("bind", &dir.join("1"), "sub", &["bind", "ro", MAP[0], MAP[1]]),
        ];
        directory(dir.join("2/sub"));
        try_mount(&inner, &rootfs).unwrap();
        assert_eq!((owner(&rootfs.join("sub/top")), owner(&rootfs.join("top"))), ((100_007, 200_008), (0, 0)));
        nothing_is_left(&bundle);
        assert_eq!(owner(&dir.join("1/top")), (7, 8));
    });
}

#[test]
fn a_file_is_mounted_as_a_block_device_and_the_device_is_free_again() {
    in_private(|dir| {
        let image = dir.join("image");
        File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let made = Process::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output();
        if !made.is_ok_and(|made| made.status.success()) || !Path::new("/dev/loop-control").exists() {
            return;
        }
        let (bundle, rootfs) = (dir.join("b"), dir.join("b/rootfs"));
        let devices = || {
            let entries = fs::read_dir("/sys/block").unwrap().flatten();
            let files = entries.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
            files.filter(|file| file.trim() == image.to_str().unwrap()).count()
        };
        for (options, writable) in [(&["loop"][..], true), (&["loop", "ro"], false)] {
            try_mount(&[request("ext4", &image, "", options)], &rootfs).unwrap();
            assert!(rootfs.join("lost+found").is_dir());
            assert_eq!(fs::write(rootfs.join("x"), "").is_ok(), writable);
            assert_eq!(devices(), 1);
            nothing_is_left(&bundle);
            assert_eq!(devices(), 0);
        }
        // One that does not hold a file system.
        fs::write(&image, vec![0; 1 << 20]).unwrap();
        try_mount(&[request("ext4", &image, "", &["loop"])], &rootfs).unwrap_err();
        assert_eq!(devices(), 0);
        let error = try_mount(&[request("ext4", &dir.join("none"), "", &["loop"])], &rootfs).unwrap_err().to_string();
        assert!(error.contains("/mnt/none"), "{error}");
    });
}

#[test]
fn what_a_killed_shim_left_while_it_mounted_is_taken_away() {
    in_private(|dir| {
        let rootfs = directory(dir.join("b/rootfs"));
        let scratch = Scratch::beside(&rootfs).unwrap();
        mount(None::<&str>, &directory(scratch.0.join("0")), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::mem::forget(scratch);
        assert_eq!(points(&dir.join("b")).len(), 2);
        nothing_is_left(&dir.join("b"));
    });
}
