//! A graphical file manager (PCManFM) on a screen in memory: browse, thumbnails, copy, rename, move to the trash. Keys go in as from a
//! keyboard; what it did is read from the mount, what it shows from the screen's pixels. Nothing is timed: every step waits for what it does.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::command::{Cmd, Running};
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

/// Moves to the trash without asking, and shows pictures.
const LIBFM: &str = "[config]
use_trash=1
confirm_del=0
confirm_trash=0
thumbnail_local=1
thumbnail_max=4096
[ui]
show_thumbnail=1
thumbnail_size=128
";

/// Large icons, so that a thumbnail has some thousand pixels.
const PCMANFM: &str = "[ui]
win_width=800
win_height=500
view_mode=thumbnail
";

/// The colour of the pictures: no part of a window has it, and neither has a thumbnail that is shown as selected.
const COLOUR: [u8; 3] = [0xff, 0x00, 0xff];

/// Pixels of one picture at least.
const SHOWN: usize = 3_000;

/// A screen, a window manager and a file manager on it. All end with the value.
struct Desktop {
    home: PathBuf,
    display: String,
    manager: Option<Running>,
    _windows: Running,
    _screen: Running,
}

impl Desktop {
    fn new(home: PathBuf, show: &Path) -> Self {
        for (path, text) in [
            (".config/libfm/libfm.conf", LIBFM),
            (".config/pcmanfm/default/pcmanfm.conf", PCMANFM),
        ] {
            let path = home.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir(home.join("Templates")).unwrap();
        // A number of this process's own: servers that look for a free one by themselves may find the same. The screen is a file.
        let display = format!(":{}", 1_000 + std::process::id() % 50_000);
        let screen = Cmd::new("Xvfb")
            .args([
                &display,
                "-displayfd",
                "1",
                "-screen",
                "0",
                "800x500x24",
                "-nolisten",
                "tcp",
                "-fbdir",
            ])
            .arg(&home)
            .start();
        wait_for("the screen is there", SOON, || screen.said().contains('\n'));
        let windows = on(&home, &display, "openbox").start();
        wait_for("the window manager", SOON, || {
            on(&home, &display, "xdotool")
                .arg("get_num_desktops")
                .run()
                .succeeded()
        });
        let manager = on(&home, &display, "pcmanfm").arg(show).start();
        let desktop = Self {
            home,
            display,
            manager: Some(manager),
            _windows: windows,
            _screen: screen,
        };
        desktop.wait_for_window(show.file_name().unwrap().to_str().unwrap());
        desktop
    }

    fn xdotool(&self, args: &[&str]) -> String {
        let ran = on(&self.home, &self.display, "xdotool").args(args).run();
        ran.out
    }

    fn window(&self) -> String {
        self.xdotool(&["getwindowfocus", "getwindowname"])
            .trim()
            .to_owned()
    }

    /// Waits until the window with this title takes the keys.
    #[track_caller]
    fn wait_for_window(&self, title: &str) {
        wait_for(&format!("the window {title}"), SOON, || {
            if self.window() == title {
                return true;
            }
            self.xdotool(&[
                "search",
                "--onlyvisible",
                "--name",
                &format!("^{title}$"),
                "windowactivate",
            ]);
            false
        });
    }

    /// Presses keys, and again every few seconds, until they had their effect: a window that is busy may drop some.
    #[track_caller]
    fn press(&self, keys: &[&str], what: &str, mut done: impl FnMut() -> bool) {
        let mut pressed: Option<Instant> = None;
        wait_for(what, SOON, || {
            if pressed.is_none_or(|at| at.elapsed() > Duration::from_secs(4)) {
                self.xdotool(&[&["key"], keys].concat());
                pressed = Some(Instant::now());
            }
            done()
        });
    }

    /// Goes to a folder that shows a picture, waits for the picture, and selects all: a selected picture is tinted.
    #[track_caller]
    fn select_all_in(&self, folder: &Path) {
        self.go(folder);
        wait_for("the thumbnail", SOON, || self.coloured() > SHOWN);
        self.press(&["ctrl+a"], "the selection", || self.coloured() == 0);
    }

    #[track_caller]
    fn go(&self, folder: &Path) {
        self.xdotool(&["key", "ctrl+l"]);
        self.xdotool(&["type", "--delay", "1", folder.to_str().unwrap()]);
        self.xdotool(&["key", "Return"]);
        self.wait_for_window(folder.file_name().unwrap().to_str().unwrap());
    }

    /// Pixels on the screen that have the pictures' colour.
    fn coloured(&self) -> usize {
        let image = fs::read(self.home.join("Xvfb_screen0")).unwrap();
        // As `xwd` has it: a header that begins with its length, colours, then four bytes for a pixel, blue first.
        let [red, green, blue] = COLOUR;
        image
            .chunks_exact(4)
            .filter(|pixel| pixel[..3] == [blue, green, red])
            .count()
    }
}

fn on(home: &Path, display: &str, program: &str) -> Cmd {
    Cmd::new(program)
        .env("DISPLAY", display)
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join(".config"))
        .env("XDG_CACHE_HOME", home.join(".cache"))
        .env("XDG_DATA_HOME", home.join(".local/share"))
        .env("XDG_RUNTIME_DIR", home)
        .env("DBUS_SESSION_BUS_ADDRESS", "disabled:")
        .env("NO_AT_BRIDGE", "1")
        .env("LC_ALL", "C.UTF-8")
        .dir(home)
}

/// A picture of one colour, as a BMP file of 200 x 150 pixels.
fn picture() -> Vec<u8> {
    let (width, height) = (200_u32, 150_u32);
    let pixels = width * height * 3;
    let mut bytes = b"BM".to_vec();
    for field in [
        54 + pixels,
        0,
        54,
        40,
        width,
        height,
        1 | 24 << 16,
        0,
        pixels,
        2835,
        2835,
        0,
        0,
    ] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let [red, green, blue] = COLOUR;
    bytes.extend([blue, green, red].repeat((width * height) as usize));
    bytes
}

#[test]
fn a_file_manager_browses_copies_renames_and_trashes() {
    let mut volume = TestVolume::mounted();
    let at = |name: &str| volume.at(name);
    for folder in ["Photos", "Copies", "Letters"] {
        fs::create_dir(at(folder)).unwrap();
    }
    let large = noise(3, 3 << 20);
    fs::write(at("Photos/picture.bmp"), picture()).unwrap();
    fs::write(at("Photos/large file"), &large).unwrap();
    fs::write(at("Letters/draft.bmp"), picture()).unwrap();
    let home = volume.place().join("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let mut desktop = Desktop::new(home, volume.mountpoint());

    // Browse, thumbnail, copy.
    desktop.select_all_in(&at("Photos"));
    desktop.xdotool(&["key", "ctrl+c"]);
    desktop.go(&at("Copies"));
    desktop.press(&["ctrl+v"], "the copies", || {
        let is = |name, content: &[u8]| fs::read(at(name)).is_ok_and(|found| found == content);
        is("Copies/picture.bmp", &picture()) && is("Copies/large file", &large)
    });
    wait_for("the copy's thumbnail", SOON, || desktop.coloured() > SHOWN);

    // Rename.
    let before = fs::metadata(at("Letters/draft.bmp")).unwrap();
    desktop.select_all_in(&at("Letters"));
    desktop.press(&["F2"], "the question for a name", || {
        desktop.window() == "Rename File"
    });
    desktop.xdotool(&["type", "--delay", "1", "final"]);
    desktop.xdotool(&["key", "Return"]);
    wait_for("the new name", SOON, || at("Letters/final.bmp").exists());
    assert!(!at("Letters/draft.bmp").exists());
    assert_eq!(fs::metadata(at("Letters/final.bmp")).unwrap().ino(), before.ino());
    desktop.wait_for_window("Letters");

    // Move to the trash: as the trash specification has it, into a folder of this user's in the root of the mount.
    desktop.select_all_in(&at("Copies"));
    let trash = format!(".Trash-{}", rustix::process::getuid().as_raw());
    desktop.press(&["Delete"], "the trash has both", || {
        let count = |folder: PathBuf| fs::read_dir(folder).map(Iterator::count).ok();
        count(at("Copies")) == Some(0) && count(at(&trash).join("files")) == Some(2)
    });

    desktop.manager.take();
    drop(desktop);
    volume.kill();
    volume.mount();
    let trash = volume.at(&trash);
    assert_eq!(fs::metadata(&trash).unwrap().mode() & 0o7777, 0o700);
    assert!(fs::read(trash.join("files/picture.bmp")).unwrap() == picture());
    assert!(fs::read(trash.join("files/large file")).unwrap() == large);
    let info = fs::read_to_string(trash.join("info/large file.trashinfo")).unwrap();
    assert!(
        info.starts_with("[Trash Info]\nPath=Copies/large%20file\nDeletionDate="),
        "{info}"
    );
    assert!(fs::read(volume.at("Letters/final.bmp")).unwrap() == picture());
    assert!(fs::read(volume.at("Photos/large file")).unwrap() == large);
}
