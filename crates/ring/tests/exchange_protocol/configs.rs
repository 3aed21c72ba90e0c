//! Which processes do what.

use crate::machine::{Config, Op::*, Shown::*};

const PLAIN: Config = Config {
    name: "",
    programs: &[],
    slots: 2,
    lanes: 2,
    hands: 1,
    inline: false,
    kills: (0, &[]),
    full_effort: false,
    sleeping: false,
    deadlines: &[],
    jumps: false,
    laps: 16,
    first_lap: 15,
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
        at_least: 6_300,
        ..PLAIN
    },
    Config {
        name: "capacity 1, recoverer killed",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Release(0), Copy(0)], &[Recover, Recover], &[Recover]],
        slots: 1,
        kills: (2, &[0, 1, 2]),
        thinning: 1,
        shows: &[RecovererReplaced],
        at_least: 48_000,
        ..PLAIN
    },
    Config {
        name: "an orphan is taken, its taker killed",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Release(0)], &[Copy(0), Copy(0)], &[Recover, Recover]],
        lanes: 3,
        kills: (2, &[1, 2]),
        shows: &[OrphanTaken, OrphanTakenFromRecovering, TakerRecovered, OrphansLowered],
        at_least: 58_600,
        ..PLAIN
    },
    Config {
        name: "all three send and receive, two killed",
        programs: &[&[Send(0), Copy(0)], &[Copy(0), Send(0)], &[Recv(0), Release(0), Copy(0)]],
        lanes: 3,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        shows: &[FoundElsewhere, NotYetDecidable, TakerRecovered],
        at_least: 118_700,
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
        at_least: 51_800,
        ..PLAIN
    },
    Config {
        name: "two hands, capacity 1, leaked, dropped, inherited",
        programs: &[&[Send(0), Send(1)], &[Recv(0), Send(1), Detach], &[Attach, Copy(1)], &[Recover]],
        slots: 1,
        hands: 2,
        kills: (1, &[0, 1]),
        shows: &[PutBackForOrphans, TakenWithOrphans],
        at_least: 182_900,
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
        at_least: 18_100,
        ..PLAIN
    },
    Config {
        name: "a new handle in a lane that takers know",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Detach], &[Copy(0)], &[Attach, Recv(0), Detach]],
        lanes: 3,
        slots: 1,
        thinning: 1,
        at_least: 25_600,
        ..PLAIN
    },
    Config {
        name: "all lanes have orphans",
        programs: &[&[Send(0), Recv(0)], &[Send(0), Recv(0)], &[Attach, Copy(0), Copy(0)]],
        full_effort: true,
        kills: (2, &[0, 1]),
        shows: &[TakenWithOrphans, OrphanTakenInPlace],
        thinning: 1,
        at_least: 38_900,
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
        at_least: 13_100,
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
        at_least: 4_300,
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
        at_least: 67_500,
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
        at_least: 31_200,
        ..PLAIN
    },
    Config {
        name: "jumps, capacity 2",
        programs: &[&[Send(0), Send(0), Send(0)], &[Copy(0), Copy(0), Copy(0)], &[Copy(0), Send(0)]],
        lanes: 3,
        jumps: true,
        shows: &[Jumped],
        thinning: 1,
        at_least: 19_900,
        ..PLAIN
    },
    Config {
        name: "jumps, capacity 1, closed",
        programs: &[&[Send(0), Send(0), Send(0)], &[Copy(0), Copy(0), Copy(0)], &[Close], &[Attach, Copy(0)]],
        slots: 1,
        lanes: 4,
        jumps: true,
        shows: &[Jumped, SaidClosed],
        at_least: 56_900,
        ..PLAIN
    },
    Config {
        name: "two laps are enough for one pair",
        programs: &[&[Send(0); 5], &[Copy(0); 5], &[Recover]],
        slots: 1,
        laps: 2,
        first_lap: 0,
        kills: (1, &[0, 1]),
        shows: &[LapsWrapped],
        thinning: 1,
        at_least: 19_100,
        ..PLAIN
    },
    Config {
        name: "idle for less than half of all laps",
        programs: &[&[Send(0); 3], &[Copy(0); 3], &[Copy(0), Send(0)]],
        slots: 1,
        lanes: 3,
        jumps: true,
        laps: 7,
        first_lap: 0,
        thinning: 1,
        at_least: 18_500,
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
        at_least: 13_200,
        ..PLAIN
    },
    Config {
        name: "sleep: two receive, one of three killed",
        programs: &[&[Send(0), Send(0)], &[WaitRecv(0), Release(0)], &[WaitCopy(0)]],
        lanes: 3,
        sleeping: true,
        kills: (1, &[0, 1, 2]),
        shows: &[Slept, WokeOne, OrphanTaken],
        at_least: 87_900,
        ..PLAIN
    },
    Config {
        name: "sleep: the last one sends, and leaves",
        programs: &[&[Send(0), Detach, Leave], &[WaitCopy(0), WaitCopy(0)]],
        sleeping: true,
        kills: (1, &[0]),
        thinning: 1,
        shows: &[SaidPeerDied],
        at_least: 1_300,
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
        at_least: 148_500,
        ..PLAIN
    },
    Config {
        name: "sleep: two receive, closed",
        programs: &[&[Send(0), Close], &[WaitCopy(0), WaitCopy(0)], &[WaitCopy(0)]],
        lanes: 3,
        sleeping: true,
        shows: &[SaidClosed, WokeOne],
        thinning: 1,
        at_least: 24_600,
        ..PLAIN
    },
    Config {
        name: "sleep: leaked and dropped",
        programs: &[&[Send(0)], &[Recv(0), Detach], &[WaitCopy(0)]],
        lanes: 3,
        sleeping: true,
        kills: (1, &[0, 1]),
        thinning: 1,
        at_least: 26_300,
        ..PLAIN
    },
    Config {
        name: "sleep: somebody else recovers",
        programs: &[&[Send(0)], &[Recv(0)], &[WaitCopy(0)], &[Recover]],
        lanes: 3,
        sleeping: true,
        kills: (1, &[1]),
        at_least: 26_000,
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
        at_least: 33_500,
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
    // All messages received and given up.
    Config {
        name: "finished: one copies, one holds, killed",
        programs: &[&[Send(0), Send(0)], &[Copy(0), Recv(0), Release(0)], &[Finished]],
        lanes: 3,
        kills: (1, &[1]),
        shows: &[SaidFinished, SawAnotherInFlight],
        at_least: 11_200,
        ..PLAIN
    },
    Config {
        name: "finished: an orphan goes round",
        programs: &[&[Copy(0), Finished], &[Send(0), Recv(0), Detach], &[Recv(0), Detach]],
        lanes: 3,
        slots: 1,
        shows: &[SaidFinished, SawAnotherInFlight],
        at_least: 108_900,
        ..PLAIN
    },
    // Messages in the slots.
    Config {
        name: "inline: one sends, one copies, both killed",
        programs: &[&[Send(0), Send(0), Send(0)], &[Copy(0), Copy(0), Copy(0), Copy(0)], &[Recover, Recover]],
        kills: (2, &[0, 1]),
        thinning: 1,
        shows: &[Settled, PlaceKept, PlaceExchanged, FoundElsewhere, LapsWrapped],
        at_least: 8_100,
        ..INLINE
    },
    Config {
        name: "inline: capacity 1, recoverer killed",
        programs: &[&[Send(0), Send(0)], &[Recv(0), Release(0), Copy(0)], &[Recover, Recover], &[Recover]],
        slots: 1,
        kills: (2, &[0, 1, 2]),
        shows: &[RecovererReplaced, LapsWrapped],
        at_least: 52_700,
        ..INLINE
    },
    Config {
        name: "inline: two send, one receives",
        programs: &[&[Send(0), Send(0)], &[Send(0)], &[Copy(0), Recv(0), Release(0)]],
        slots: 1,
        lanes: 3,
        kills: (1, &[0, 1, 2]),
        full_effort: true,
        at_least: 17_600,
        ..INLINE
    },
    Config {
        name: "inline: two receive what a third one sends",
        programs: &[&[Send(0), Send(0), Send(0)], &[Copy(0), Copy(0)], &[Recv(0), Release(0)]],
        slots: 1,
        lanes: 3,
        kills: (1, &[1, 2]),
        at_least: 14_400,
        ..INLINE
    },
    Config {
        name: "inline: an orphan is taken, its taker killed",
        programs: &[&[Send(0), Send(0)], &[Recv(0)], &[Copy(0), Copy(0)], &[Recover, Recover]],
        lanes: 3,
        kills: (2, &[1, 2]),
        shows: &[OrphanTaken, TakerRecovered],
        at_least: 76_900,
        ..INLINE
    },
    Config {
        name: "inline: a cell is orphaned twice in the same hand",
        programs: &[&[Send(0), Copy(0), Send(0)], &[Recv(0), Detach, Attach, Recv(0), Detach], &[Copy(0)]],
        slots: 1,
        lanes: 3,
        shows: &[OrphanTaken, StaleOrphanRefused],
        at_least: 96_400,
        ..INLINE
    },
    Config {
        name: "inline: two hands, messages held across",
        programs: &[
            &[Recv(0), Recv(1), Release(0), Send(0), Copy(0)],
            &[Send(0), Send(1), Copy(0)],
            &[Recover],
        ],
        hands: 2,
        kills: (1, &[0, 1]),
        at_least: 75_100,
        ..INLINE
    },
    Config {
        name: "inline: all lanes have orphans, two hands",
        programs: &[&[Send(0), Recv(1)], &[Recv(0)], &[Attach, Recv(0), Copy(1)]],
        hands: 2,
        slots: 1,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        at_least: 19_400,
        ..INLINE
    },
    Config {
        name: "inline: leaked, dropped, inherited",
        programs: &[&[Send(0), Copy(0)], &[Recv(0), Detach], &[Attach, Copy(0), Send(0)]],
        full_effort: true,
        kills: (1, &[0, 1, 2]),
        shows: &[OrphanTakenInPlace],
        at_least: 24_900,
        ..INLINE
    },
    Config {
        name: "inline: two laps are enough for one pair",
        programs: &[&[Send(0); 5], &[Copy(0); 5], &[Recover]],
        slots: 1,
        laps: 2,
        first_lap: 0,
        kills: (1, &[0, 1]),
        shows: &[LapsWrapped],
        at_least: 23_500,
        ..INLINE
    },
];

const INLINE: Config = Config { inline: true, ..PLAIN };

/// What is excluded: there must be more than twice as many laps as anybody is behind (here: 3).
pub const EXCLUDED: Config = Config {
    name: "idle for half of all laps",
    programs: &[&[Send(0); 3], &[Copy(0); 3], &[Copy(0), Send(0)]],
    slots: 1,
    lanes: 3,
    laps: 6,
    first_lap: 0,
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
        at_least: 254_300,
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
        at_least: 2_250_000,
        ..PLAIN
    },
    Config {
        name: "a lane changes hands while takers look at it",
        programs: &[&[Send(0), Copy(0), Send(0)], &[Recv(0), Detach, Attach, Send(0)], &[Copy(0), Send(0)]],
        lanes: 3,
        full_effort: true,
        kills: (1, &[0, 1, 2]),
        thinning: 16,
        at_least: 516_100,
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
        at_least: 809_900,
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
        at_least: 19_900,
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
        at_least: 382_900,
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
        at_least: 3_570_000,
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
        at_least: 337_600,
        ..PLAIN
    },
    Config {
        name: "inline: all three send and receive, two killed",
        programs: &[&[Send(0), Copy(0), Send(0)], &[Copy(0), Send(0)], &[Recv(0), Release(0), Copy(0)]],
        lanes: 3,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        thinning: 16,
        at_least: 545_400,
        ..INLINE
    },
    Config {
        name: "inline: three with two hands each, two killed",
        programs: &[&[Send(0), Recv(1)], &[Recv(0), Send(1)], &[Send(1), Copy(0)]],
        slots: 1,
        lanes: 3,
        hands: 2,
        full_effort: true,
        kills: (2, &[0, 1, 2]),
        thinning: 16,
        at_least: 448_100,
        ..INLINE
    },
    Config {
        name: "inline: a cell is orphaned again and again, one killed",
        programs: &[
            &[Send(0), Copy(0), Send(0)],
            &[Recv(0), Detach, Attach, Recv(0), Detach],
            &[Recv(0), Release(0), Copy(0)],
        ],
        slots: 1,
        lanes: 3,
        full_effort: true,
        kills: (1, &[0, 1, 2]),
        thinning: 16,
        at_least: 1_620_000,
        ..INLINE
    },
    Config {
        name: "inline: jumps, capacity 2, one killed",
        programs: &[&[Send(0); 4], &[Recv(0), Release(0), Copy(0), Copy(0)], &[Copy(0), Send(0)]],
        lanes: 3,
        full_effort: true,
        jumps: true,
        kills: (1, &[0, 1, 2]),
        thinning: 16,
        at_least: 734_200,
        ..INLINE
    },
    Config {
        name: "finished: an orphan goes from hand to hand",
        programs: &[&[Finished], &[Recv(0)], &[Recv(0), Detach], &[Send(0), Recv(0), Detach]],
        slots: 1,
        lanes: 4,
        thinning: 16,
        at_least: 5_660_000,
        ..PLAIN
    },
    Config {
        name: "finished: orphans go round, two killed",
        programs: &[
            &[Copy(0), Finished, Finished],
            &[Send(0), Recv(0), Detach],
            &[Send(0), Recv(0), Copy(0)],
        ],
        lanes: 3,
        full_effort: true,
        kills: (2, &[1, 2]),
        thinning: 16,
        shows: &[SaidFinished, SawAnotherInFlight],
        at_least: 7_120_000,
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
