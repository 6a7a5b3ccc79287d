//! What the kernel programs tell the agent.

use std::{io, path::Path};

use aya::maps::{Map, MapData, RingBuf};
use bytemuck::Pod;
use steer_common::{CgroupEvent, EventKind, GuardEvent};
use steer_core::cgroups::name_of;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    error::{Error, Result},
    maps::EVENTS,
};

/// Something happened in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A cgroup was made, anywhere on the machine; its entry is inherited already.
    CgroupMade {
        /// Its id.
        id: u64,
        /// Its parent's id.
        parent: u64,
        /// Its directory's name.
        name: String,
    },
    /// A cgroup was removed; its entry is gone already.
    CgroupRemoved {
        /// Its id.
        id: u64,
    },
    /// A guard dropped a packet.
    Guard(GuardEvent),
}

/// The ring of events. Events that came while nobody read are still there, as far as they fit.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl EventStream {
    /// Opens the ring that is pinned in `directory`. Only one reader may have it.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let map_error = |source| Error::Map {
            name: EVENTS.name,
            source: Box::new(source),
        };
        let map = MapData::from_pin(directory.join(EVENTS.name)).map_err(map_error)?;
        let map = Map::from_map_data(map).map_err(map_error)?;
        let ring = RingBuf::try_from(map).map_err(map_error)?;
        // SAFETY: the ring owns its descriptor, which neither changes nor closes before the ring is
        // dropped, and it cannot be taken out of this stream.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| Error::kernel("wait for", "the event ring")(error.into()))?;
        Ok(Self { ring })
    }

    /// The next event. Cancelling loses nothing.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.try_next() {
                return Ok(event);
            }
            let mut guard = self.ring.readable_mut().await?;
            // Look again before waiting: an event that came in between is not announced twice.
            if let Some(event) = take(guard.get_inner_mut()) {
                return Ok(event);
            }
            guard.clear_ready();
        }
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        take(self.ring.get_mut())
    }
}

/// The next record that is understood.
fn take(ring: &mut RingBuf<MapData>) -> Option<Event> {
    while let Some(record) = ring.next() {
        if let Some(event) = parse(&record) {
            return Some(event);
        }
    }
    None
}

fn parse(record: &[u8]) -> Option<Event> {
    let kind: u32 = read(record)?;
    if kind == EventKind::Guard as u32 {
        return Some(Event::Guard(read(record)?));
    }
    let event: CgroupEvent = read(record)?;
    if kind == EventKind::CgroupRemoved as u32 {
        return Some(Event::CgroupRemoved { id: event.id });
    }
    if kind != EventKind::CgroupMade as u32 {
        return None;
    }
    let name = event
        .name
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    Some(Event::CgroupMade {
        id: event.id,
        parent: event.parent,
        name: name_of(name),
    })
}

fn read<T: Pod>(record: &[u8]) -> Option<T> {
    record
        .get(..size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use steer_common::{CgroupEvent, EventKind, GuardEvent};

    use super::{Event, parse};

    #[test]
    fn records_are_read_by_their_kind() {
        let mut made = CgroupEvent::zeroed();
        made.kind = EventKind::CgroupMade as u32;
        (made.id, made.parent) = (7, 1);
        made.name[..3].copy_from_slice(b"web");
        assert_eq!(
            parse(bytemuck::bytes_of(&made)),
            Some(Event::CgroupMade {
                id: 7,
                parent: 1,
                name: "web".to_owned()
            })
        );
        let guard = GuardEvent {
            kind: EventKind::Guard as u32,
            ..GuardEvent::default()
        };
        assert_eq!(parse(bytemuck::bytes_of(&guard)), Some(Event::Guard(guard)));
    }

    #[test]
    fn short_and_unknown_records_are_skipped() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[1, 0, 0, 0, 0]), None);
        assert_eq!(parse(&[9; 280]), None);
    }
}
