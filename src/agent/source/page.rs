//! A page of a list: its text goes in, its objects and where the list goes on come out.

use std::cell::OnceCell;

use serde_json::value::RawValue;

use super::intern::Pool;
use super::kinds::{Kind, Read, read as read_object, unreadable};
use super::limits;
use super::transport::Failure;
use super::wire::{ListMeta, Page, nonsense};

/// Objects on one page, unless they are too large for one.
pub(super) const OBJECTS: u32 = 500;

/// Objects in the order of the page; none in the place of one without a name.
pub(super) type Objects<K> = Vec<Option<Read<<K as Kind>::Object>>>;

/// Reads a page.
pub(super) fn read<K: Kind>(text: &[u8], pool: &mut Pool) -> Result<(Objects<K>, ListMeta), Failure> {
    // Nearly always all of them can be decoded in one go.
    if let Ok(page) = serde_json::from_slice::<Page<K::Wire>>(text) {
        // Of use for objects that cannot be converted; however many these are, the page is read once for them.
        let raw: OnceCell<Vec<&RawValue>> = OnceCell::new();
        let read_raw = || serde_json::from_slice::<Page<&RawValue>>(text).ok()?.items;
        let mut objects = Vec::new();
        for (at, wire) in page.items.into_iter().flatten().enumerate() {
            let object = || {
                let item = raw.get_or_init(|| read_raw().unwrap_or_default()).get(at);
                item.map_or_else(Vec::new, |item| item.get().as_bytes().to_vec())
            };
            objects.push(read_object::<K>(wire, object, pool));
        }
        return Ok((objects, page.metadata));
    }
    let text = limits::utf8(text);
    let page: Page<&RawValue> = serde_json::from_str(&text).map_err(nonsense)?;
    let items = page.items.into_iter().flatten();
    let objects = items.map(|item| object::<K>(item.get().as_bytes(), pool)).collect();
    Ok((objects, page.metadata))
}

/// An object on its own; none when it has no name.
pub(super) fn object<K: Kind>(text: &[u8], pool: &mut Pool) -> Option<Read<K::Object>> {
    match serde_json::from_slice::<K::Wire>(text) {
        Ok(wire) => read_object::<K>(wire, || text.to_vec(), pool),
        Err(error) => unreadable::<K>(text, &error),
    }
}
