//! The error codes of the OCI distribution specification, and the body that carries them.

use serde::Serialize;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// A code of the OCI distribution specification.
        ///
        /// Source: OCI distribution specification, "Error Codes".
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// The code as it stands in a body.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code that a body names; none for a word that the specification does not have.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The registry does not know the blob.
    BlobUnknown => "BLOB_UNKNOWN",
    /// The upload of a blob went wrong.
    BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
    /// The registry does not know the upload.
    BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
    /// A digest is none, or does not match its content.
    DigestInvalid => "DIGEST_INVALID",
    /// A manifest names a blob that is not there.
    ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
    /// A manifest is none, or does not match its digest.
    ManifestInvalid => "MANIFEST_INVALID",
    /// The registry does not know the manifest.
    ManifestUnknown => "MANIFEST_UNKNOWN",
    /// A repository name is none.
    NameInvalid => "NAME_INVALID",
    /// The registry does not know the repository.
    NameUnknown => "NAME_UNKNOWN",
    /// A length does not match its content.
    SizeInvalid => "SIZE_INVALID",
    /// The client must authenticate itself.
    Unauthorized => "UNAUTHORIZED",
    /// The client may not do this.
    Denied => "DENIED",
    /// The operation is not supported.
    Unsupported => "UNSUPPORTED",
    /// Too many requests.
    TooManyRequests => "TOOMANYREQUESTS",
}

#[derive(Serialize)]
struct Errors<'a> {
    errors: [Error<'a>; 1],
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// The JSON body of an error.
///
/// `detail`: for programs or the curious; the message alone must do for a person.
pub fn body(code: Code, message: &str, detail: Option<&str>) -> Vec<u8> {
    let errors = Errors { errors: [Error { code: code.as_str(), message, detail }] };
    serde_json::to_vec(&errors).expect("strings always serialize")
}
