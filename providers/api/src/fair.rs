//! A fair queue: who shares, and whose turn it is (F-105, F-174).
//!
//! Plain values: no clock, no tasks. Two levels of virtual time: groups share by weight, usually
//! tenants, and inside a group its members share evenly, usually sessions. What a piece of work has
//! cost is charged when it is done; before that, what the group's work usually costs. So one long
//! answer counts as much as many short ones.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use rspp_proto::spec::Priority;

/// Who a piece of work is accounted to where many share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who comes first: interactive work has [`INTERACTIVE_WEIGHT`] times the share of background
    /// work.
    pub priority: Priority,
    /// Who shares with others; usually a tenant.
    pub group: Arc<str>,
    /// Who shares within the group; usually a session.
    pub member: Arc<str>,
    /// Share of the group, against that of others.
    pub weight: NonZeroU32,
    /// Most that the group may hold at once.
    pub slots: Option<NonZeroU32>,
}

impl Share {
    /// A group with one share, and one of its members.
    pub fn new(group: impl Into<Arc<str>>, member: impl Into<Arc<str>>) -> Self {
        Self {
            priority: Priority::Interactive,
            group: group.into(),
            member: member.into(),
            weight: NonZeroU32::MIN,
            slots: None,
        }
    }
}

impl Default for Share {
    /// Nobody in particular.
    fn default() -> Self {
        Self::new("", "")
    }
}

/// How much more interactive work gets than background work, while both wait.
pub const INTERACTIVE_WEIGHT: u32 = 16;

/// Groups that are remembered though nothing of theirs waits or runs.
const MAX_IDLE: usize = 4_096;

/// The least that a piece of work is charged, and what the first one is.
const LEAST: u64 = 1_000;

/// Virtual time per microsecond of a group with one share, so that dividing by weights keeps its
/// precision.
const SCALE: u64 = 1 << 16;

type Key = (Priority, Arc<str>);

/// What became of an item that was to be queued.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed<T> {
    /// It waits.
    Queued,
    /// It waits, in place of an item of whoever has most waiting.
    Displaced(T),
    /// Nobody has more waiting than its own group.
    Refused(T),
}

/// Somebody's turn; to be given back with [`FairQueue::release`].
#[derive(Debug)]
pub struct Grant {
    key: Key,
    member: Arc<str>,
    charged: u64,
}

/// A bounded queue in which nobody starves.
#[derive(Debug)]
pub struct FairQueue<T> {
    most: usize,
    waiting: usize,
    clock: u64,
    groups: BTreeMap<Key, Group<T>>,
}

#[derive(Debug)]
struct Group<T> {
    weight: u64,
    slots: Option<NonZeroU32>,
    in_use: u32,
    waiting: usize,
    /// When its next piece of work is due, in virtual time.
    due: u64,
    /// Virtual time among its members.
    clock: u64,
    /// What its work usually costs, in microseconds.
    usual: u64,
    members: BTreeMap<Arc<str>, Member<T>>,
}

#[derive(Debug)]
struct Member<T> {
    due: u64,
    in_use: u32,
    queue: VecDeque<T>,
}

impl<T> Group<T> {
    fn new(share: &Share) -> Self {
        Self {
            weight: weight(share),
            slots: share.slots,
            in_use: 0,
            waiting: 0,
            due: 0,
            clock: 0,
            usual: LEAST,
            members: BTreeMap::new(),
        }
    }

    fn has_slot(&self) -> bool {
        self.slots.is_none_or(|slots| self.in_use < slots.get())
    }

    fn is_idle(&self) -> bool {
        self.waiting == 0 && self.in_use == 0
    }

    fn member(&mut self, name: &Arc<str>) -> &mut Member<T> {
        let clock = self.clock;
        let member = self
            .members
            .entry(Arc::clone(name))
            .or_insert_with(|| Member {
                due: clock,
                in_use: 0,
                queue: VecDeque::new(),
            });
        if member.queue.is_empty() {
            // Who had nothing to do has saved nothing up.
            member.due = member.due.max(clock);
        }
        member
    }

    /// Forgets members that have nothing here and owe nothing.
    fn tidy(&mut self) {
        let clock = self.clock;
        if self.waiting == 0 && self.in_use == 0 {
            self.members.clear();
        } else {
            self.members.retain(|_, member| {
                !member.queue.is_empty() || member.in_use > 0 || member.due > clock
            });
        }
    }
}

fn weight(share: &Share) -> u64 {
    let class = match share.priority {
        Priority::Interactive => INTERACTIVE_WEIGHT,
        Priority::Background => 1,
    };
    u64::from(share.weight.get()) * u64::from(class)
}

impl<T> FairQueue<T> {
    /// A queue for at most `most` items.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            waiting: 0,
            clock: 0,
            groups: BTreeMap::new(),
        }
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Queues an item. In a full queue it takes the place of the newest item of whoever has most
    /// waiting for their share, so that a flood displaces itself only.
    pub fn push(&mut self, share: &Share, item: T) -> Pushed<T> {
        let own = self.group(share);
        let load = |waiting: usize, weight: u64| waiting as u64 * SCALE / weight;
        let own_load = load(own.waiting + 1, own.weight);
        let mut displaced = None;
        if self.waiting >= self.most {
            let longest = self
                .groups
                .iter()
                .max_by_key(|(_, group)| load(group.waiting, group.weight));
            let longest = longest
                .filter(|(_, group)| load(group.waiting, group.weight) > own_load)
                .map(|(key, _)| key.clone());
            let Some(longest) = longest else {
                self.forget(&key(share));
                return Pushed::Refused(item);
            };
            displaced = self.displace(&longest);
        }
        let group = self.group(share);
        group.waiting += 1;
        group.member(&share.member).queue.push_back(item);
        self.waiting += 1;
        displaced.map_or(Pushed::Queued, Pushed::Displaced)
    }

    /// Begins a piece of work at once, past the queue; `None` if its group may hold no more, or if
    /// others wait.
    pub fn begin(&mut self, share: &Share) -> Option<Grant> {
        let group = self.group(share);
        if !group.has_slot() {
            return None;
        }
        if self.next_key().is_some() {
            return None;
        }
        let group = self.group(share);
        group.member(&share.member);
        Some(self.grant(&key(share), &share.member))
    }

    /// The next item whose turn it is.
    pub fn pop(&mut self) -> Option<(Grant, T)> {
        let key = self.next_key()?;
        let group = self.groups.get_mut(&key)?;
        let (name, _) = group
            .members
            .iter()
            .filter(|(_, member)| !member.queue.is_empty())
            .min_by_key(|(_, member)| member.due)?;
        let name = Arc::clone(name);
        let item = group.members.get_mut(&name)?.queue.pop_front()?;
        group.waiting -= 1;
        self.waiting -= 1;
        Some((self.grant(&key, &name), item))
    }

    /// A piece of work is done, and has cost so much.
    pub fn release(&mut self, grant: Grant, cost: Duration) {
        let actual = u64::try_from(cost.as_micros())
            .unwrap_or(u64::MAX)
            .max(LEAST);
        self.settle(grant, Some(actual));
    }

    /// A piece of work was not done after all.
    pub fn give_back(&mut self, grant: Grant) {
        self.settle(grant, None);
    }

    /// Removes all items that are of no use any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for group in self.groups.values_mut() {
            for member in group.members.values_mut() {
                let before = member.queue.len();
                member.queue.retain(&mut keep);
                let gone = before - member.queue.len();
                group.waiting -= gone;
                self.waiting -= gone;
            }
        }
    }

    /// Takes out everything that waits.
    pub fn drain(&mut self) -> Vec<T> {
        let mut all = Vec::with_capacity(self.waiting);
        for group in self.groups.values_mut() {
            for member in group.members.values_mut() {
                all.extend(member.queue.drain(..));
            }
            group.waiting = 0;
        }
        self.waiting = 0;
        all
    }

    fn group(&mut self, share: &Share) -> &mut Group<T> {
        let clock = self.clock;
        let group = self
            .groups
            .entry(key(share))
            .or_insert_with(|| Group::new(share));
        group.weight = weight(share);
        group.slots = share.slots;
        if group.waiting == 0 {
            group.due = group.due.max(clock);
        }
        group
    }

    /// The group whose turn it is.
    fn next_key(&self) -> Option<Key> {
        let ready = self
            .groups
            .iter()
            .filter(|(_, group)| group.waiting > 0 && group.has_slot());
        ready
            .min_by_key(|(_, group)| group.due)
            .map(|(key, _)| key.clone())
    }

    fn grant(&mut self, key: &Key, name: &Arc<str>) -> Grant {
        let group = self
            .groups
            .get_mut(key)
            .expect("who is granted something has a group");
        let charged = group.usual;
        self.clock = self.clock.max(group.due);
        group.due = group.due.saturating_add(charged * SCALE / group.weight);
        group.in_use += 1;
        let member = group
            .members
            .get_mut(name)
            .expect("who is granted something is a member");
        group.clock = group.clock.max(member.due);
        member.due = member.due.saturating_add(charged * SCALE);
        member.in_use += 1;
        Grant {
            key: key.clone(),
            member: Arc::clone(name),
            charged,
        }
    }

    fn settle(&mut self, grant: Grant, actual: Option<u64>) {
        let Grant {
            key,
            member,
            charged,
        } = grant;
        let Some(group) = self.groups.get_mut(&key) else {
            return;
        };
        group.in_use -= 1;
        let owed = actual.unwrap_or(0);
        group.due = corrected(group.due, charged, owed, group.weight);
        if let Some(actual) = actual {
            group.usual = (group.usual * 3 + actual) / 4;
        }
        if let Some(member) = group.members.get_mut(&member) {
            member.in_use -= 1;
            member.due = corrected(member.due, charged, owed, 1);
        }
        group.tidy();
        self.forget(&key);
    }

    /// Forgets a group that has nothing here and owes nothing; all, when nobody competes any more.
    fn forget(&mut self, key: &Key) {
        let clock = self.clock;
        let idle = |group: &Group<T>| group.is_idle();
        if self.waiting == 0 && self.groups.values().all(idle) {
            self.groups.clear();
            self.clock = 0;
            return;
        }
        if self
            .groups
            .get(key)
            .is_some_and(|group| group.is_idle() && group.due <= clock)
        {
            self.groups.remove(key);
        }
        if self.groups.len() > MAX_IDLE + self.waiting {
            self.groups
                .retain(|_, group| !group.is_idle() || group.due > clock);
        }
        if self.groups.len() > 2 * (MAX_IDLE + self.waiting) {
            // More debtors than anybody can have in earnest: their debts are forgiven.
            self.groups.retain(|_, group| !group.is_idle());
        }
    }

    /// Takes the newest item out of a group's longest queue.
    fn displace(&mut self, key: &Key) -> Option<T> {
        let group = self.groups.get_mut(key)?;
        let longest = group
            .members
            .values_mut()
            .max_by_key(|member| member.queue.len())?;
        let item = longest.queue.pop_back()?;
        group.waiting -= 1;
        self.waiting -= 1;
        Some(item)
    }
}

fn key(share: &Share) -> Key {
    (share.priority, Arc::clone(&share.group))
}

/// What is due after a charge turned out to be another.
fn corrected(due: u64, charged: u64, owed: u64, weight: u64) -> u64 {
    let scaled = |cost: u64| cost.saturating_mul(SCALE) / weight;
    due.saturating_sub(scaled(charged))
        .saturating_add(scaled(owed))
}

#[cfg(test)]
mod tests;
