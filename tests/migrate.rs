//! `tidegate migrate icsp`: old mirror policies become mirror sets, to the byte.

use std::fs;
use std::path::Path;

use tidegate_tests::process::run;
use tidegate_tests::program::tidegate;

const FIRST: &str = "# of the team that runs the mirror\napiVersion: operator.openshift.io/v1alpha1\n\
    kind: ImageContentSourcePolicy\nmetadata:\n  name: ubi8repo\nspec:\n  repositoryDigestMirrors:\n  - mirrors:\n    - \
    example.io/example/ubi-minimal\n    - example.com/example2/ubi-minimal # slow\n    source: \
    registry.access.redhat.com/ubi8/ubi-minimal\n";

fn migrate(folder: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(tidegate());
    let output = run(command.args(["migrate", "icsp"]).args(words).current_dir(folder));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn policies_become_mirror_sets_and_the_rest_of_the_file_stays() {
    let folder = tempfile::tempdir().unwrap();
    let second = FIRST.replace("ubi8repo", "ubi9repo");
    fs::write(folder.path().join("icsp.yaml"), FIRST).unwrap();
    fs::write(folder.path().join("icsp-2.yaml"), format!("{second}---\n{FIRST}")).unwrap();
    let words = ["icsp.yaml", "icsp-2.yaml", "--dest-dir", "idms-files"];
    let (code, told, _) = migrate(folder.path(), &words);
    assert_eq!(code, Some(0), "{told}");
    let new = |text: &str| {
        text.replace("operator.openshift.io/v1alpha1", "config.openshift.io/v1")
            .replace("ImageContentSourcePolicy", "ImageDigestMirrorSet")
            .replace("repositoryDigestMirrors", "imageDigestMirrors")
    };
    let files: Vec<_> = told.lines().filter_map(|line| line.strip_prefix("wrote ImageDigestMirrorSet to ")).collect();
    let [one, two] = files[..] else { panic!("{told}") };
    for (file, name, text) in [(one, "ubi8repo", new(FIRST)), (two, "ubi9repo", new(&format!("{second}---\n{FIRST}")))]
    {
        let number = file.strip_prefix(&format!("idms-files/imagedigestmirrorset_{name}.")).unwrap_or_default();
        assert!(number.strip_suffix(".yaml").is_some_and(|number| number.parse::<u64>().is_ok()), "{file}");
        assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), text);
    }
    // Once more, the same: nothing piles up.
    assert_eq!(migrate(folder.path(), &words).1, told);
    // Without a folder, where one is.
    let (code, told, _) = migrate(folder.path(), &["icsp.yaml"]);
    assert_eq!(code, Some(0));
    let file = told.trim().strip_prefix("wrote ImageDigestMirrorSet to ").unwrap_or_default();
    assert!(Path::new(file).starts_with(folder.path().canonicalize().unwrap()) && Path::new(file).exists(), "{told}");
}

#[test]
fn a_file_that_is_no_policy_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("icsp.yaml"), FIRST).unwrap();
    fs::write(folder.path().join("pod.yaml"), "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n").unwrap();
    fs::write(folder.path().join("bad.yaml"), "a: [\n").unwrap();
    fs::write(folder.path().join("bytes.yaml"), b"\xff\xfe").unwrap();
    let words = ["icsp.yaml", "pod.yaml", "bad.yaml", "bytes.yaml", "missing.yaml", "--dest-dir", "idms"];
    let (code, _, told) = migrate(folder.path(), &words);
    assert_eq!(code, Some(2), "{told}");
    for part in
        ["pod.yaml:1: is no ImageContentSourcePolicy", "bad.yaml:", "bytes.yaml", "missing.yaml", "nothing was written"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("icsp.yaml:"), "{told}");
    assert!(!folder.path().join("idms").exists());
    let (code, _, told) = migrate(folder.path(), &["icsp.yaml", "--dest-dir", "pod.yaml"]);
    assert_eq!((code, told.contains("no folder")), (Some(2), true), "{told}");
}
