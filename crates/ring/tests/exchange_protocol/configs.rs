//! Which processes do what.

use crate::machine::{Config, Op::*, Shown::*};

const PLAIN: Config = Config {
    name: "",
    programs: &[],
    slots: 2,
    lanes: 2,
    hands: 1,
    kills: (0, &[]),
    full_effort: false,
    sleeping: false,
    deadlines: &[],
    jumps: false,
    laps: 16,
    thinning: 8,
    limit: usize::MAX,
    bug: None,
    shows: &[],
    at_least: 0,
};

pub const SHORT: &[Config] = &[
    Config {
        name: "one sends, one copies, both killed",
        programs: &[&[Send(0), Send(0), Send(0)], &[Copy(0), Copy(0), Copy(0), Copy(0)], &[Recover, Recover]],
        kills: (2, &[0, 1]),
        thinning: 1,
        shows: &[Settled, PlaceKept, PlaceExchanged, FoundElsewhere],
        at_least: 10_200,
        ..PLAIN
    },
    Config {
        name: "capacity 1, recoverer killed",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Release(0), Copy(0)], &[Recover, Recover], &[Recover]],
        slots: 1,
        kills: (2, &[0, 1, 2]),
        thinning: 1,
        shows: &[RecovererReplaced],
        at_least: 58_300,
        ..PLAIN
    },
    Config {
        name: "an orphan is taken, its taker killed",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Release(0)], &[Copy(0), Copy(0)], &[Recover, Recover]],
        lanes: 3,
        kills: (2, &[1, 2]),
        shows: &[OrphanTaken, OrphanTakenFromRecovering, TakerRecovered, OrphansLowered],
        at_least: 274_100,
        ..PLAIN
    },
    Config {
        name: "all three send and receive, two killed",
        programs: &[&[Send(0), Copy(0)], &[Copy(0), Send(0)], &[Recv(0), Release(0), Copy(0)]],
        lanes: 3,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        shows: &[FoundElsewhere, NotYetDecidable, TakerRecovered],
        at_least: 179_600,
        ..PLAIN
    },
    Config {
        name: "two hands, messages held across",
        programs: &[
            &[Recv(0), Recv(1), Release(0), Send(0), Copy(0)],
            &[Send(0), Send(1), Copy(0)],
            &[Recover],
        ],
        hands: 2,
        kills: (1, &[0, 1]),
        at_least: 119_700,
        ..PLAIN
    },
    Config {
        name: "two hands, capacity 1, leaked, dropped, inherited",
        programs: &[&[Send(0), Send(1)], &[Recv(0), Send(1), Detach], &[Attach, Copy(1)], &[Recover]],
        slots: 1,
        hands: 2,
        kills: (1, &[0, 1]),
        shows: &[PutBackForOrphans, TakenWithOrphans],
        at_least: 279_400,
        ..PLAIN
    },
    Config {
        name: "leaked, dropped, inherited",
        programs: &[&[Send(0), Copy(0)], &[Recv(0), Detach], &[Attach, Copy(0), Send(0)]],
        lanes: 2,
        full_effort: true,
        kills: (1, &[0, 1, 2]),
        shows: &[OrphanTakenInPlace],
        thinning: 1,
        at_least: 21_200,
        ..PLAIN
    },
    Config {
        name: "a new handle in a lane that takers know",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Detach], &[Copy(0)], &[Attach, Recv(0), Detach]],
        lanes: 3,
        slots: 1,
        thinning: 1,
        at_least: 36_800,
        ..PLAIN
    },
    Config {
        name: "all lanes have orphans",
        programs: &[&[Send(0), Recv(0)], &[Send(0), Recv(0)], &[Attach, Copy(0), Copy(0)]],
        full_effort: true,
        kills: (2, &[0, 1]),
        shows: &[TakenWithOrphans, OrphanTakenInPlace],
        thinning: 1,
        at_least: 50_200,
        ..PLAIN
    },
    Config {
        name: "all lanes have orphans, two hands",
        programs: &[&[Send(0), Recv(1)], &[Recv(0)], &[Attach, Recv(0), Copy(1)]],
        hands: 2,
        slots: 1,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        thinning: 1,
        at_least: 15_500,
        ..PLAIN
    },
    Config {
        name: "two take an orphan, one of them the lane's new holder",
        programs: &[&[Send(0), Copy(0)], &[Recv(1)], &[Attach, Recv(0)]],
        hands: 2,
        slots: 1,
        full_effort: true,
        kills: (2, &[1, 2]),
        thinning: 1,
        shows: &[TakenWithOrphans],
        at_least: 6_000,
        ..PLAIN
    },
    Config {
        name: "closed while one sends and one receives",
        programs: &[
            &[Send(0), Send(0), Send(0)],
            &[Copy(0), Recv(0), Release(0), Copy(0)],
            &[Close],
            &[Recover],
        ],
        lanes: 3,
        kills: (1, &[0, 1, 2]),
        shows: &[SaidClosed],
        at_least: 98_600,
        ..PLAIN
    },
    Config {
        name: "closed, a receiver killed, two more",
        programs: &[&[Send(0), Close], &[Recv(0)], &[Copy(0), Copy(0)], &[Recover]],
        slots: 1,
        lanes: 3,
        full_effort: true,
        kills: (1, &[1]),
        shows: &[SaidClosed, OrphanTaken],
        thinning: 1,
        at_least: 43_300,
        ..PLAIN
    },
    Config {
        name: "jumps, capacity 2",
        programs: &[&[Send(0), Send(0), Send(0)], &[Copy(0), Copy(0), Copy(0)], &[Copy(0), Send(0)]],
        lanes: 3,
        jumps: true,
        shows: &[Jumped],
        thinning: 1,
        at_least: 35_900,
        ..PLAIN
    },
    Config {
        name: "jumps, capacity 1, closed",
        programs: &[&[Send(0), Send(0), Send(0)], &[Copy(0), Copy(0), Copy(0)], &[Close], &[Attach, Copy(0)]],
        slots: 1,
        lanes: 4,
        jumps: true,
        shows: &[Jumped, SaidClosed],
        at_least: 94_100,
        ..PLAIN
    },
    Config {
        name: "two laps are enough for one pair",
        programs: &[&[Send(0); 5], &[Copy(0); 5], &[Recover]],
        slots: 1,
        laps: 2,
        kills: (1, &[0, 1]),
        shows: &[LapsWrapped],
        thinning: 1,
        at_least: 29_400,
        ..PLAIN
    },
    Config {
        name: "idle for less than half of all laps",
        programs: &[&[Send(0); 3], &[Copy(0); 3], &[Copy(0), Send(0)]],
        slots: 1,
        lanes: 3,
        jumps: true,
        laps: 7,
        thinning: 1,
        at_least: 29_500,
        ..PLAIN
    },
    // Sleep.
    Config {
        name: "sleep: one sends, one receives",
        programs: &[
            &[WaitSend(0), WaitSend(0), WaitSend(0)],
            &[WaitCopy(0), WaitRecv(0), Release(0), WaitCopy(0)],
        ],
        slots: 1,
        sleeping: true,
        kills: (1, &[0, 1]),
        thinning: 1,
        shows: &[Slept, SaidPeerDied],
        at_least: 13_800,
        ..PLAIN
    },
    Config {
        name: "sleep: two receive, one of three killed",
        programs: &[&[Send(0), Send(0)], &[WaitRecv(0), Release(0)], &[WaitCopy(0)]],
        lanes: 3,
        sleeping: true,
        kills: (1, &[0, 1, 2]),
        shows: &[Slept, WokeOne, OrphanTaken],
        at_least: 120_200,
        ..PLAIN
    },
    Config {
        name: "sleep: the last one sends, and leaves",
        programs: &[&[Send(0), Detach, Leave], &[WaitCopy(0), WaitCopy(0)]],
        sleeping: true,
        kills: (1, &[0]),
        thinning: 1,
        shows: &[SaidPeerDied],
        at_least: 1_400,
        ..PLAIN
    },
    Config {
        name: "sleep: closed",
        programs: &[&[WaitSend(0), WaitSend(0)], &[WaitCopy(0), WaitCopy(0)], &[Close]],
        slots: 1,
        lanes: 3,
        sleeping: true,
        kills: (1, &[0, 1, 2]),
        shows: &[SaidClosed],
        at_least: 159_400,
        ..PLAIN
    },
    Config {
        name: "sleep: two receive, closed",
        programs: &[&[Send(0), Close], &[WaitCopy(0), WaitCopy(0)], &[WaitCopy(0)]],
        lanes: 3,
        sleeping: true,
        shows: &[SaidClosed, WokeOne],
        thinning: 1,
        at_least: 29_300,
        ..PLAIN
    },
    Config {
        name: "sleep: leaked and dropped",
        programs: &[&[Send(0)], &[Recv(0), Detach], &[WaitCopy(0)]],
        lanes: 3,
        sleeping: true,
        kills: (1, &[0, 1]),
        thinning: 1,
        at_least: 29_600,
        ..PLAIN
    },
    Config {
        name: "sleep: somebody else recovers",
        programs: &[&[Send(0)], &[Recv(0)], &[WaitCopy(0)], &[Recover]],
        lanes: 3,
        sleeping: true,
        kills: (1, &[1]),
        at_least: 34_400,
        ..PLAIN
    },
    Config {
        name: "sleep: two send, one gives up",
        programs: &[&[Send(0), WaitSend(0)], &[WaitSend(0)], &[Copy(0), Copy(0)]],
        slots: 1,
        lanes: 3,
        sleeping: true,
        deadlines: &[0],
        kills: (1, &[0, 2]),
        shows: &[TimedOut, Slept],
        at_least: 44_100,
        ..PLAIN
    },
    Config {
        name: "sleep: two receive, one gives up, orphans",
        programs: &[&[Send(0), Send(0)], &[WaitCopy(0)], &[WaitCopy(0)], &[Recv(0)]],
        lanes: 4,
        sleeping: true,
        deadlines: &[1],
        kills: (1, &[3]),
        limit: 100_000,
        ..PLAIN
    },
];

/// What is excluded: there must be more than twice as many laps as anybody is behind (here: 3).
pub const EXCLUDED: Config = Config {
    name: "idle for half of all laps",
    programs: &[&[Send(0); 3], &[Copy(0); 3], &[Copy(0), Send(0)]],
    slots: 1,
    lanes: 3,
    laps: 6,
    ..PLAIN
};

/// A few minutes.
pub const LONG: &[Config] = &[
    Config {
        name: "three with two hands each, two killed",
        programs: &[&[Send(0), Recv(1)], &[Recv(0), Send(1)], &[Send(1), Copy(0)]],
        slots: 1,
        lanes: 3,
        hands: 2,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        thinning: 16,
        at_least: 480_000,
        ..PLAIN
    },
    Config {
        name: "four lanes, one killed",
        programs: &[&[Send(0), Copy(0)], &[Send(0)], &[Copy(0)], &[Recv(0), Detach]],
        slots: 1,
        lanes: 4,
        full_effort: true,
        kills: (1, &[0, 1, 2, 3]),
        thinning: 16,
        at_least: 4_200_000,
        ..PLAIN
    },
    Config {
        name: "a lane changes hands while takers look at it",
        programs: &[&[Send(0), Copy(0), Send(0)], &[Recv(0), Detach, Attach, Send(0)], &[Copy(0), Send(0)]],
        lanes: 3,
        full_effort: true,
        kills: (1, &[0, 1, 2]),
        thinning: 16,
        at_least: 960_000,
        ..PLAIN
    },
    Config {
        name: "two hands leaked, a new handle, two killed",
        programs: &[
            &[Send(0), Send(1), Recv(0)],
            &[Recv(0), Recv(1), Detach, Attach, Copy(0)],
            &[Attach, Recv(0), Send(1)],
        ],
        slots: 1,
        hands: 2,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        thinning: 16,
        at_least: 1_100_000,
        ..PLAIN
    },
    Config {
        name: "closed by one of three, two killed",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Copy(0)], &[Close, Copy(0)]],
        slots: 1,
        lanes: 3,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        thinning: 16,
        at_least: 25_000,
        ..PLAIN
    },
    Config {
        name: "capacity 3, jumps, one killed",
        programs: &[&[Send(0); 4], &[Recv(0), Release(0), Copy(0), Copy(0)], &[Copy(0), Send(0)]],
        slots: 3,
        lanes: 3,
        full_effort: true,
        jumps: true,
        kills: (1, &[0, 1, 2]),
        thinning: 16,
        at_least: 840_000,
        ..PLAIN
    },
    Config {
        name: "sleep: all three receive, two killed",
        programs: &[&[WaitSend(0), WaitSend(0), WaitCopy(0)], &[WaitCopy(0), WaitRecv(0)], &[WaitCopy(0)]],
        slots: 1,
        lanes: 3,
        sleeping: true,
        kills: (2, &[0, 1, 2]),
        thinning: 16,
        at_least: 4_700_000,
        ..PLAIN
    },
    Config {
        name: "sleep: two hands, two killed",
        programs: &[&[WaitSend(0), WaitSend(1)], &[WaitRecv(0), WaitRecv(1)], &[WaitCopy(0)]],
        slots: 1,
        lanes: 3,
        hands: 2,
        sleeping: true,
        kills: (2, &[0, 1]),
        thinning: 16,
        at_least: 440_000,
        ..PLAIN
    },
    Config {
        name: "two take two orphans, made one after the other",
        programs: &[&[Send(0), Send(0), Copy(0)], &[Recv(0), Detach], &[Recv(0), Detach], &[Copy(0)]],
        lanes: 4,
        limit: 5_000_000,
        ..PLAIN
    },
];
