//! What is served: a tree of files whose paths are those of the distribution specification, so that a web server that
//! knows nothing of registries is one.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidegate_tests::content::{Content, sha256};
use tidegate_tests::image::Image;

/// The repository of everything.
pub const REPOSITORY: &str = "library/app";

/// A folder that goes with it.
#[derive(Debug)]
pub struct Stock {
    folder: TempDir,
}

impl Stock {
    /// An empty one.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for kind in ["blobs", "manifests"] {
            fs::create_dir_all(folder.path().join(format!("v2/{REPOSITORY}/{kind}"))).expect("a folder");
        }
        // As a mirror has it that is named before the registry.
        fs::create_dir(folder.path().join("v2/docker.io")).expect("a folder");
        symlink("../library", folder.path().join("v2/docker.io/library")).expect("a new link");
        Self { folder }
    }

    /// The root of the tree.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join(&path[1..])
    }

    /// A blob of a size that nothing else has. Gives its path.
    pub fn blob(&self, seed: u64, len: u64) -> String {
        let content = Content::noise(seed, len);
        let path = blob_path(&content.digest());
        let file = self.file(&path);
        if !file.exists() {
            let mut file = BufWriter::new(File::create(file).expect("a new file"));
            content.write(&mut file, 0, len).expect("room on the disk");
            file.flush().expect("room on the disk");
        }
        path
    }

    /// An image under a tag, with its blobs. Gives the path of the manifest.
    pub fn image(&self, image: &Image, tag: &str) -> String {
        for blob in &image.blobs {
            fs::write(self.file(&blob_path(&sha256(blob))), blob).expect("room on the disk");
        }
        self.manifest(image, tag)
    }

    /// A manifest alone, under a tag. Gives its path.
    pub fn manifest(&self, image: &Image, tag: &str) -> String {
        let path = |reference: &str| format!("/v2/{REPOSITORY}/manifests/{reference}");
        fs::write(self.file(&path(&image.digest())), &image.manifest).expect("room on the disk");
        let tagged = self.file(&path(tag));
        if !tagged.exists() {
            symlink(image.digest(), tagged).expect("a new link");
        }
        path(tag)
    }
}

/// Path of a blob.
pub fn blob_path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}
