//! Files as block devices (Linux, drivers/block/loop.c), each for the time that it is mounted.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// How often a device that was free may have been taken by somebody else meanwhile.
const TRIES: usize = 64;

// linux/loop.h
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

nix::ioctl_none_bad!(free_device, 0x4c82);
nix::ioctl_write_ptr_bad!(configure, 0x4c0a, Configuration);
nix::ioctl_write_int_bad!(set_file, 0x4c00);
nix::ioctl_write_int_bad!(clear_file, 0x4c01);
nix::ioctl_write_ptr_bad!(set_status, 0x4c04, Info);
nix::ioctl_write_int_bad!(set_direct_io, 0x4c08);

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A device over a file. The kernel clears it when the last of this value and its mounts is gone.
pub(super) struct Loop {
    path: PathBuf,
    _open: File,
}

impl Loop {
    /// Finds a free device and sets it up.
    pub(super) fn over(file: &Path, read_only: bool, direct: bool) -> io::Result<Self> {
        let how = || OpenOptions::new().read(true).write(!read_only).to_owned();
        let backing = how().open(file)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..TRIES {
            // SAFETY: the descriptor is open; the request has no argument.
            let number = unsafe { free_device(control.as_raw_fd()) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = how().open(&path)?;
            match set_up(&device, &backing, file, read_only, direct) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(Errno::EBUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }

    /// The device to mount.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn set_up(device: &File, backing: &File, name: &Path, read_only: bool, direct: bool) -> nix::Result<()> {
    let device = device.as_raw_fd();
    // SAFETY: all of its fields are integers, for which 0 is a value, and means that nothing is asked for.
    let mut info: Info = unsafe { zeroed() };
    info.flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    // For losetup to show; the last byte stays zero.
    let name = name.as_os_str().as_bytes();
    let shown = name.len().min(info.file_name.len() - 1);
    info.file_name[..shown].copy_from_slice(&name[..shown]);

    let file = backing.as_raw_fd();
    let direct_io = if direct { LO_FLAGS_DIRECT_IO } else { 0 };
    let whole = Configuration {
        file: file.unsigned_abs(),
        block_size: 0,
        info: Info { flags: info.flags | direct_io, ..info },
        reserved: [0; 8],
    };
    // SAFETY: both descriptors are open, and the requests read the structures that Linux names for them.
    unsafe {
        match configure(device, &whole) {
            // Linux before 5.8 does it in steps.
            Err(Errno::EINVAL | Errno::ENOTTY) => {}
            done => return done.map(drop),
        }
        set_file(device, file)?;
        let status = set_status(device, &info);
        let status = if direct { status.and_then(|_| set_direct_io(device, 1)) } else { status };
        if status.is_err() {
            let _ = clear_file(device, 0);
        }
        status.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!((size_of::<Info>(), size_of::<Configuration>()), (232, 304));
    }
}
