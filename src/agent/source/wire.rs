//! What lists and watches look like on the wire, around the objects.

use serde::Deserialize;

use super::limits;
use super::partial::Meta;
use super::transport::Failure;

/// The annotation of the bookmark that ends the objects that were there at the start.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Line<T> {
    #[serde(rename = "type")]
    pub(super) what: What,
    pub(super) object: T,
}

/// What has happened to the object of a line.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum What {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page<T> {
    pub(super) metadata: ListMeta,
    pub(super) items: Option<Vec<T>>,
}

/// What is in use of a list's own metadata.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) continue_token: Option<String>,
    /// How many objects follow, where the API server has counted them.
    pub(super) remaining_item_count: Option<i64>,
}

/// An answer that cannot be read.
pub(super) fn nonsense(error: serde_json::Error) -> Failure {
    // It may quote what it found.
    Failure::Nonsense(limits::line(&error.to_string()))
}

/// Whether a bookmark ends the objects that were there at the start.
pub(super) fn is_end_of_list(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Bookmark {
        metadata: Meta,
    }
    let bookmark = serde_json::from_slice::<Line<Bookmark>>(line).ok();
    bookmark
        .and_then(|line| line.object.metadata.annotations)
        .is_some_and(|a| a.contains_key(INITIAL_EVENTS_END))
}
