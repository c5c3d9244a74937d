//! Configuration files that are wrong: the program does not start, and says where and why. The texts stand in
//! `corpus/configurations.toml`; what is no text is made here.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tidegate_tests::corpus;
use tidegate_tests::process::run;
use tidegate_tests::site::Site;

const SECRET: &str = "tide-and-time";
/// What reading a configuration may take, whatever it is: ten times what is expected.
const SOON: Duration = Duration::from_secs(10);

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What is wrong with the refusal of a configuration; none where it is as it must be.
fn fault(output: &Output, line: Option<usize>, says: &[&str]) -> Option<String> {
    let told = told(output);
    let place = line.map_or_else(|| "tidegate.toml".to_owned(), |line| format!("tidegate.toml:{line}: "));
    if output.status.code() != Some(2) {
        return Some(format!("exit code {:?}: {told}", output.status.code()));
    }
    if let Some(missing) = std::iter::once(place.as_str()).chain(says.iter().copied()).find(|word| !told.contains(word))
    {
        return Some(format!("it does not say {missing:?}: {told}"));
    }
    if told.contains(SECRET) {
        return Some("it prints a secret".to_owned());
    }
    let raw = told.chars().find(|sign| sign.is_control() && *sign != '\n');
    raw.map(|sign| format!("it prints {sign:?}"))
}

fn mkfifo(path: &Path) {
    assert!(run(Command::new("mkfifo").arg(path)).status.success());
}

#[test]
fn every_configuration_of_the_corpus_is_refused_with_file_line_and_key_or_taken() {
    let site = Site::new();
    let (folder, file, secret) = (site.path("here/inside"), site.path("file"), site.path("secret"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(&file, "something").unwrap();
    fs::write(&secret, SECRET).unwrap();
    let mut wrong = Vec::new();
    for case in corpus::configurations() {
        let text = case
            .text
            .replace("{folder}", &folder.display().to_string())
            .replace("{parent}", &folder.parent().unwrap().display().to_string())
            .replace("{file}", &file.display().to_string())
            .replace("{secret}", &secret.display().to_string());
        fs::write(site.path("tidegate.toml"), &text).unwrap();
        let says: Vec<&str> = case.says.iter().map(String::as_str).collect();
        let checked = site.run_as_is(&["check"]);
        let fault = match case.line {
            // `serve` refuses what `check` refuses; what is taken would be served until the end of time.
            Some(line) => fault(&checked, Some(line), &says).or_else(|| {
                fault(&site.run_as_is(&["serve"]), Some(line), &says).map(|fault| format!("serve: {fault}"))
            }),
            None if checked.status.code() == Some(0) => None,
            None => Some(told(&checked)),
        };
        wrong.extend(fault.map(|fault| format!("{}: {fault}", case.name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_configuration_that_is_no_text_file_is_refused_at_once() {
    let site = Site::new();
    let file = site.path("tidegate.toml");
    let mut wrong = Vec::new();
    let mut refused = |what: &str, line: Option<usize>, says: &[&str]| {
        for verb in ["check", "serve"] {
            let begun = Instant::now();
            let output = site.run_as_is(&[verb]);
            wrong.extend(fault(&output, line, says).map(|fault| format!("{verb}, {what}: {fault}")));
            assert!(begun.elapsed() < SOON, "{what} takes {:?}", begun.elapsed());
        }
        let is_folder = fs::symlink_metadata(&file).is_ok_and(|about| about.is_dir());
        let _ = if is_folder { fs::remove_dir(&file) } else { fs::remove_file(&file) };
    };
    refused("a file that is not there", None, &[]);
    fs::create_dir(&file).unwrap();
    refused("a folder", None, &["regular file"]);
    mkfifo(&file);
    refused("a FIFO that nobody writes", None, &["regular file"]);
    let listener = UnixListener::bind(&file).unwrap();
    assert!(fs::symlink_metadata(&file).unwrap().file_type().is_socket());
    refused("a socket", None, &["regular file"]);
    drop(listener);
    symlink(site.path("nothing"), &file).unwrap();
    refused("a link to nothing", None, &[]);
    symlink(&file, &file).unwrap();
    refused("a link to itself", None, &[]);
    symlink("/dev/zero", &file).unwrap();
    refused("a file without an end", None, &["regular file"]);
    fs::write(&file, b"# fine\nlisten = \"\xff\xfe\"\n").unwrap();
    refused("bytes that are no text", Some(2), &["UTF-8"]);
    fs::write(&file, b"\xff\xfel\x00i\x00s\x00t\x00e\x00n\x00").unwrap();
    refused("text of two bytes a letter", Some(1), &["UTF-8"]);
    fs::write(&file, b"listen = \"127.0.0.1:0\"\n\0\0\0\0").unwrap();
    refused("zeros, as a power cut leaves them", Some(2), &[]);
    let big = fs::File::create(&file).unwrap();
    (&big).write_all(b"# a sparse file\n").unwrap();
    big.set_len(50 << 20).unwrap();
    refused("50 MiB", None, &["larger than"]);
    fs::write(&file, format!("x = {}1{}\n", "[".repeat(100_000), "]".repeat(100_000))).unwrap();
    refused("a list of lists, 100 000 deep", Some(1), &[]);
    fs::write(&file, format!("{} = 1\n", vec!["a"; 100_000].join("."))).unwrap();
    refused("a key of 100 000 parts", None, &["recursion limit"]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_plugin_folder_that_is_none_refuses_the_start() {
    let site = Site::new();
    let folder = site.path("plugins.d");
    fs::remove_dir(&folder).unwrap();
    let refused = |what: &str| {
        let begun = Instant::now();
        let output = site.run(&["serve"]);
        let fault = fault(&output, None, &["plugins.dir", &folder.display().to_string()]);
        assert_eq!(fault, None, "{what}");
        assert!(begun.elapsed() < SOON, "{what} takes {:?}", begun.elapsed());
        let _ = fs::remove_file(&folder);
    };
    refused("nothing");
    fs::write(&folder, "a file").unwrap();
    refused("a file");
    mkfifo(&folder);
    refused("a FIFO");
    let listener = UnixListener::bind(&folder).unwrap();
    refused("a socket");
    drop(listener);
    symlink(site.path("nothing"), &folder).unwrap();
    refused("a link to nothing");
}
