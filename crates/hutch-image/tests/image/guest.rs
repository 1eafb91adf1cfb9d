use std::fs;
use std::path::PathBuf;

use hutch_image::{
    GuestImage, GuestImageError, GuestImageOptions, GuestImageSource, Kept, Refresh, guest_image,
    kept, remove_unneeded,
};

use crate::elf;
use crate::world::{Steps, World, read, whole};

const RELEASE: &str = "6.12.1-cloud";
/// `PT_INTERP`: the program needs a loader.
const INTERP: u32 = 3;

fn init(world: &World, version: &str) -> PathBuf {
    world.file("hutch-init", &elf::elf(&[], &[(".text", version.as_bytes())]))
}

/// A kernel and its modules by path.
fn given(world: &World) -> GuestImageSource {
    let modules = format!("modules/{RELEASE}");
    world.file(&format!("{modules}/kernel/virtio_blk.ko"), &elf::module(""));
    world.file(&format!("{modules}/kernel/tun.ko"), &elf::module(""));
    GuestImageSource::Files {
        kernel: world.file("vmlinuz", b"a kernel of another kind"),
        modules: Some(world.path(&modules)),
    }
}

/// An archive with one kernel in it, behind scripts that play apt and dpkg-deb.
fn archive(world: &World) -> GuestImageSource {
    let compressed = zstd::encode_all(&elf::vmlinux(1000)[..], 1).expect("memory");
    let payload = [compressed, vec![0; 4]].concat();
    let kernel = world.file("archive/vmlinuz", &elf::boot_image(&payload));
    let module = world.file("archive/virtio_blk.ko", &elf::module(""));
    world.program(
        "apt-get",
        "case \"$*\" in
        *indextargets*) echo 'http://mirror.test/debian|Debian|Debian|main|bookworm' ;;
        *download*) echo dlstatus:1:50:x; echo deb >linux-image.deb ;;
        esac",
    );
    world.program(
        "apt-cache",
        "for name; do :; done
        echo \"Package: $name\"; echo 'Version: 1'; echo 'Size: 4'; echo \"SHA256: ab\"
        case $name in *cloud-*64) echo 'Depends: linux-image-1-cloud (= 1)' ;; esac",
    );
    world.program(
        "dpkg-deb",
        &format!(
            "m=\"$3/usr/lib/modules/{RELEASE}\"; mkdir -p \"$m\" \"$3/boot\"
            cp '{}' \"$3/boot/vmlinuz-{RELEASE}\"; cp '{}' \"$m/\"",
            kernel.display(),
            module.display()
        ),
    );
    GuestImageSource::Distribution { mirror: None, refresh: Refresh::Missing }
}

fn make(
    world: &World,
    init: PathBuf,
    source: GuestImageSource,
) -> Result<GuestImage, GuestImageError> {
    let options = GuestImageOptions {
        images: world.images(),
        init,
        source,
        environment: world.environment(),
    };
    guest_image(&options, &Steps::default())
}

#[test]
fn given_files_become_an_image_that_is_found_again() {
    let world = World::new();
    let source = given(&world);
    let image = make(&world, init(&world, "1"), source.clone()).unwrap();
    assert_eq!(image.release, RELEASE);
    assert_eq!(read(&image.kernel), b"a kernel of another kind");
    let initramfs = read(&image.initramfs);
    for part in ["virtio_blk.ko\n", "tun.ko\n", "lib/modules/hutch.order\0", "init\0"] {
        let found = initramfs.windows(part.len()).any(|window| window == part.as_bytes());
        assert!(found, "{part:?}");
    }
    assert_eq!(make(&world, init(&world, "1"), source).unwrap(), image);
    assert_eq!(world.kept("guest"), [image.digest]);
}

#[test]
fn another_init_or_module_is_another_image() {
    let world = World::new();
    let source = given(&world);
    let first = make(&world, init(&world, "1"), source.clone()).unwrap();
    let second = make(&world, init(&world, "2"), source.clone()).unwrap();
    assert_ne!(first.digest, second.digest);
    world.file(&format!("modules/{RELEASE}/kernel/tun.ko"), &elf::module("virtio_blk"));
    let third = make(&world, init(&world, "2"), source).unwrap();
    assert_ne!(second.digest, third.digest);
    assert!(first.initramfs.is_file(), "an image in use stays");
}

#[test]
fn the_fetched_kernel_is_kept_for_the_next_init() {
    let world = World::new();
    let source = archive(&world);
    let first = make(&world, init(&world, "1"), source.clone()).unwrap();
    assert_eq!(read(&first.kernel), elf::vmlinux(1000), "uncompressed");
    let second = make(&world, init(&world, "2"), source).unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(world.calls("apt-get", "download"), 1);
    assert_eq!(world.calls("dpkg-deb", "-x"), 2);
    let image = fs::read_dir(first.kernel.parent().unwrap()).unwrap().count();
    assert_eq!(image, 3, "kernel, initramfs, manifest");
}

#[test]
fn old_images_go_and_the_current_one_and_those_in_use_stay() {
    let world = World::new();
    let source = given(&world);
    let images: Vec<GuestImage> = ["1", "2", "3"]
        .map(|version| make(&world, init(&world, version), source.clone()).unwrap())
        .into();
    let options = GuestImageOptions {
        images: world.images(),
        init: init(&world, "3"),
        source,
        environment: world.environment(),
    };
    let running = fs::File::open(&images[1].kernel).unwrap();
    hutch_store::lock::mark_used(&running).unwrap();
    let unneeded = |of: Vec<Kept>| -> Vec<String> {
        let unneeded = of.iter().filter(|one| one.is_unneeded());
        unneeded.map(|one| one.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kept(&options).len(), 3);
    assert_eq!(unneeded(kept(&options)), [images[0].digest.clone()]);
    let removed = remove_unneeded(&options, &Steps::default()).unwrap();
    assert_eq!(unneeded(removed), [images[0].digest.clone()]);
    drop(running);
    let removed = remove_unneeded(&options, &Steps::default()).unwrap();
    assert_eq!(unneeded(removed), [images[1].digest.clone()]);
    assert_eq!(world.kept("guest"), [images[2].digest.clone()]);
    // What is current is not known without an init.
    fs::remove_file(&options.init).unwrap();
    assert!(remove_unneeded(&options, &Steps::default()).unwrap().is_empty());
}

#[test]
fn old_kernels_go_and_the_newest_stays() {
    let world = World::new();
    let source = archive(&world);
    make(&world, init(&world, "1"), source.clone()).unwrap();
    let old = world.images().join("kernel/old");
    fs::create_dir(&old).unwrap();
    for file in ["manifest.json", "package.deb"] {
        let newest = world.images().join("kernel").join(&world.kept("kernel")[0]);
        fs::copy(newest.join(file), old.join(file)).unwrap();
    }
    let manifest = read(&old.join("manifest.json"));
    let manifest =
        String::from_utf8(manifest).unwrap().replace("\"fetched\": ", "\"fetched\": 1 , \"was\": ");
    world.file("images/kernel/old/manifest.json", manifest.as_bytes());
    let options = GuestImageOptions {
        images: world.images(),
        init: init(&world, "1"),
        source,
        environment: world.environment(),
    };
    let removed = remove_unneeded(&options, &Steps::default()).unwrap();
    assert_eq!(removed.iter().map(|one| one.path.clone()).collect::<Vec<_>>(), [old]);
    assert_eq!((world.kept("kernel").len(), world.kept("guest").len()), (1, 1));
}

#[test]
fn several_at_once_make_it_once() {
    let world = World::new();
    let source = archive(&world);
    let path = init(&world, "1");
    let images: Vec<GuestImage> = std::thread::scope(|scope| {
        let one = || make(&world, path.clone(), source.clone()).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(images.iter().all(|image| *image == images[0]));
    assert_eq!(world.calls("apt-get", "download"), 1);
    assert_eq!(world.calls("dpkg-deb", "-x"), 1);
}

#[test]
fn what_a_killed_maker_left_is_removed() {
    let world = World::new();
    let source = given(&world);
    world.file("images/guest/tmp-dead/unpacked/file", b"half");
    let image = make(&world, init(&world, "1"), source).unwrap();
    assert_eq!(world.kept("guest"), [image.digest]);
}

#[test]
fn a_damaged_image_is_made_again() {
    let world = World::new();
    let source = given(&world);
    let image = make(&world, init(&world, "1"), source.clone()).unwrap();
    let manifest = format!("images/guest/{}/manifest.json", image.digest);
    world.file(&manifest, b"{ \"format_version\": ");
    fs::remove_file(&image.kernel).unwrap();
    assert_eq!(make(&world, init(&world, "1"), source).unwrap(), image);
    assert!(image.kernel.is_file());
}

#[test]
fn a_failed_fetch_says_why_and_leaves_nothing() {
    let world = World::new();
    let source = archive(&world);
    world.program(
        "apt-get",
        "case \"$*\" in
        *indextargets*) echo 'http://mirror.test/debian|Debian|Debian|main|bookworm' ;;
        *update*) echo 'E: Failed to fetch x  Could not resolve host'; exit 100 ;;
        esac",
    );
    let error = make(&world, init(&world, "1"), source).unwrap_err();
    let text = whole(&error);
    assert!(text.contains("failed to fetch the guest's kernel: apt-get failed"), "{text}");
    assert!(text.contains("Could not resolve host"), "{text}");
    assert!(world.images().join("logs/kernel.log").is_file());
    assert_eq!(world.kept("kernel"), [""; 0]);
    assert_eq!(world.kept("guest"), [""; 0]);
}

#[test]
fn without_apt_the_way_out_is_named() {
    let world = World::new();
    let options = GuestImageOptions {
        images: world.images(),
        init: init(&world, "1"),
        source: GuestImageSource::Distribution { mirror: None, refresh: Refresh::Missing },
        environment: vec![("PATH".into(), world.path("empty").into())],
    };
    let error = guest_image(&options, &Steps::default()).unwrap_err();
    assert!(matches!(error, GuestImageError::NoApt));
    assert!(error.to_string().contains("HUTCH_KERNEL_MODULES"), "{error}");
}

#[test]
fn bad_inputs_are_named() {
    let world = World::new();
    let source = given(&world);
    let missing = make(&world, world.path("none"), source.clone()).unwrap_err();
    assert!(matches!(missing, GuestImageError::Input { what: "the init binary", .. }));
    let dynamic = world.file("dynamic", &elf::elf(&[(INTERP, b"/lib/ld.so\0")], &[]));
    let refused = make(&world, dynamic, source).unwrap_err();
    assert!(matches!(refused, GuestImageError::InitNotStatic { .. }));
    let kernel = world.path("no-kernel");
    let files = GuestImageSource::Files { kernel, modules: None };
    let absent = make(&world, init(&world, "1"), files).unwrap_err();
    assert!(matches!(absent, GuestImageError::Input { what: "the kernel", .. }));
}
