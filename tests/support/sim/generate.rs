//! From a seed to a scenario.

use std::time::Duration;

use rspp_proto::spec::{DataHandling, Modality, OverLimit};
use rspp_provider_api::{Fault, scripted::Conduct};

use super::{
    Chore, ChoreFault, Counted, Departure, Dice, DiskFault, LineFault, Order, Part, Piece,
    Scenario, Twist, UserAct,
    pipeline::{EDGES, MODALITIES, TURN_EDGES},
    scenario::{NodeFault, Tuned},
};

impl Scenario {
    /// The scenario of a seed.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut pieces = Vec::new();
        let callers = dice.pick(&[1, 1, 1, 2, 2, 3]);
        for caller in 0..callers {
            calls(&mut dice, caller, &mut pieces);
        }
        if dice.chance(70) {
            pieces.push(Piece::Pace {
                token_ms: dice.within(0..40),
                voice_percent: dice.within(0..80),
                final_ms: dice.within(0..200),
            });
        }
        if callers > 1 && dice.chance(25) {
            pieces.push(Piece::Limits {
                sessions: dice.within(1..3) as usize,
                turns: dice.within(1..3) as usize,
            });
        }
        for _ in 0..dice.pick(&[0, 0, 1, 1, 2, 4]) {
            let modality = dice.pick(FAILING);
            pieces.push(provider(&mut dice, modality));
        }
        for _ in 0..dice.pick(&[0, 0, 1, 2, 3]) {
            let twist = twist(&mut dice);
            // Who stands by is worth looking at when somebody fails.
            let fails = match &twist {
                Twist::Second(modality) => Some(*modality),
                Twist::Standby => Some(Modality::Llm),
                _needs_no_failure => None,
            };
            pieces.push(Piece::Twist(twist));
            let Some(modality) = fails.filter(|_| dice.chance(80)) else {
                continue;
            };
            let Piece::Provider { part, conduct, .. } = provider(&mut dice, modality) else {
                continue;
            };
            let part = Part {
                second: false,
                ..part
            };
            // Long enough that it is not made good by asking again.
            let calls = if dice.chance(60) { 4 } else { 1 };
            for call in 0..calls {
                pieces.push(Piece::Provider {
                    part,
                    call,
                    conduct: conduct.clone(),
                });
            }
        }
        if dice.chance(4) {
            pieces.push(Piece::DeafeningNoise {
                windows: dice.within(1..200),
            });
        }
        if dice.chance(15) {
            pieces.push(Piece::Hesitation {
                percent: (0..4).map(|_| dice.within(0..101)).collect(),
            });
        }
        if dice.chance(3) {
            let at_ms = dice.within(0..4_000);
            pieces.push(Piece::Operator {
                caller: 0,
                at_ms,
                orders: Order::ShutDown,
            });
        }
        if dice.chance(25) {
            pieces.push(Piece::Tool(chore(&mut dice)));
        }
        if dice.chance(20) {
            pieces.push(Piece::Guesses {
                per_minute: dice.pick(&[1, 2, 6]),
                wasted_tokens: dice.pick(&[1, 5, 2_000]),
            });
            // Nobody guesses who is sure.
            pieces.push(Piece::Hesitation {
                percent: (0..4).map(|_| dice.pick(&[10, 20, 30, 100])).collect(),
            });
        }
        admission(&mut dice, callers, &mut pieces);
        moves(&mut dice, callers, &mut pieces);
        if dice.chance(5) {
            let cap_kib = dice.within(20..400);
            pieces.push(Piece::Memory {
                soft_kib: dice.within(10..cap_kib),
                cap_kib,
            });
        }
        Self { seed, pieces }
    }
}

/// What may be done, how often, how sharply, and who comes last.
fn admission(dice: &mut Dice, callers: u8, pieces: &mut Vec<Piece>) {
    if dice.chance(18) {
        let (of, most) = dice.pick(&[
            (Counted::Sessions, 1),
            (Counted::Sessions, 2),
            (Counted::SessionsPerMinute, 1),
            (Counted::Turns, 1),
            (Counted::TurnsPerMinute, 1),
            (Counted::TurnsPerMinute, 2),
            (Counted::TokensPerMinute, 3),
            (Counted::TokensPerMinute, 20),
        ]);
        pieces.push(Piece::Quota {
            shared: dice.chance(60),
            of,
            most,
            over: dice.pick(&[
                OverLimit::Reject,
                OverLimit::Defer,
                OverLimit::Throttle,
                OverLimit::Degrade,
            ]),
        });
    }
    if dice.chance(8) {
        let mut at_ms = 0;
        for _ in 0..dice.within(1..4) {
            at_ms += dice.within(0..1_500);
            pieces.push(Piece::Load {
                at_ms,
                percent: dice.pick(&[10, 60, 85, 99]),
            });
        }
    }
    if dice.chance(12) {
        pieces.push(Piece::Background {
            caller: dice.within(0..u64::from(callers)) as u8,
        });
    }
    if dice.chance(8) {
        pieces.push(Piece::Twist(Twist::Posture));
    }
}

/// Sessions that go on elsewhere.
fn moves(dice: &mut Dice, callers: u8, pieces: &mut Vec<Piece>) {
    let runs_out = dice.chance(12);
    if runs_out {
        pieces.push(Piece::Lease {
            ms: dice.within(300..1_500),
        });
    }
    if !dice.chance(if runs_out { 60 } else { 6 }) {
        return;
    }
    let caller = dice.within(0..u64::from(callers)) as u8;
    for _ in 0..dice.pick(&[1, 1, 1, 2]) {
        let by = if runs_out && dice.chance(60) {
            Departure::Lost
        } else {
            Departure::HandOver {
                after_ms: dice.within(0..900),
            }
        };
        pieces.push(Piece::Move {
            caller,
            at_ms: dice.within(200..4_000),
            by,
        });
    }
}

fn chore(dice: &mut Dice) -> Chore {
    let fault = match dice.within(0..100) {
        0..50 => ChoreFault::None,
        50..66 => ChoreFault::Fails {
            attempts: dice.within(1..4) as u32,
        },
        66..74 => ChoreFault::Deaf,
        74..92 => ChoreFault::Stubborn,
        _ => ChoreFault::Panics,
    };
    let prepares = fault == ChoreFault::Stubborn || dice.chance(60);
    Chore {
        idempotent: dice.chance(50),
        prepares_ms: prepares.then(|| dice.within(0..700)),
        takes_ms: dice.within(0..700),
        finishes: dice.chance(60),
        timeout_ms: dice.pick(&[200, 600, 1_500]),
        fault,
    }
}

/// A caller, and all that concerns that caller alone.
fn calls(dice: &mut Dice, caller: u8, pieces: &mut Vec<Piece>) {
    let hangs_up_ms = dice.within(1_500..5_500);
    pieces.push(Piece::Caller {
        caller,
        opens_ms: if caller == 0 {
            0
        } else {
            dice.within(0..1_500)
        },
        hangs_up_ms,
        packet_ms: dice.pick(&[20, 40, 40, 60, 100]),
    });
    let user = |at_ms, does| Piece::User {
        caller,
        at_ms,
        does,
    };
    // Nearly everybody says something soon.
    let mut at = dice.within(50..500);
    for nth in 0..dice.pick(&[1, 1, 2, 2, 3, 4]) {
        let act = dice.within(0..100);
        let does = match act {
            0..50 => UserAct::Speaks {
                for_ms: dice.within(250..900),
            },
            50..60 => UserAct::Speaks {
                for_ms: dice.within(20..180),
            },
            60..84 => UserAct::Types(format!("typed {caller} {nth}")),
            84..92 => UserAct::EndsUtterance,
            _ => UserAct::Cancels,
        };
        pieces.push(user(at, does));
        if matches!(act, 0..50) && dice.chance(15) {
            pieces.push(user(at + dice.within(200..900), UserAct::EndsUtterance));
        }
        at += dice.within(100..2_200);
    }
    for _ in 0..dice.pick(&[0, 0, 0, 1, 1, 2, 3]) {
        let orders = match dice.within(0..100) {
            0..30 => Order::CancelTurn,
            30..35 => Order::CancelSession,
            35..50 => {
                Order::CancelNode(dice.pick(&["stt", "vad", "llm", "segmenter", "tts", "nobody"]))
            }
            50..62 => {
                Order::CancelCall(dice.pick(&["stt", "llm", "tts"]), dice.within(1..4) as u32)
            }
            62..75 => Order::Rotate,
            75..80 => Order::RotateBack,
            80..86 => Order::Steal,
            86..93 => Order::Revoke,
            _ => Order::Drain,
        };
        pieces.push(Piece::Operator {
            caller,
            at_ms: dice.within(0..5_000),
            orders,
        });
    }
    if dice.chance(35) {
        let at_ms = dice.within(0..4_000);
        let for_ms = dice.within(20..1_500);
        let fault = match dice.within(0..100) {
            0..40 => LineFault::Jitter {
                up_to_ms: dice.within(5..250),
            },
            40..60 => LineFault::Stalls { at_ms, for_ms },
            60..80 => LineFault::Full { at_ms, for_ms },
            80..87 => LineFault::Dies { at_ms },
            87..92 => LineFault::Closes { at_ms },
            92..96 => LineFault::Mute { at_ms, for_ms },
            _ => LineFault::Reconnects { at_ms, for_ms },
        };
        pieces.push(Piece::Line { caller, fault });
    }
    if dice.chance(30) {
        let fault = match dice.within(0..100) {
            0..40 => DiskFault::None,
            40..60 => DiskFault::Slow {
                ms: dice.within(5..3_000),
            },
            60..80 => DiskFault::Full {
                bytes: dice.within(1_000..60_000) as usize,
            },
            _ => DiskFault::Fails {
                bytes: dice.within(1_000..60_000) as usize,
            },
        };
        pieces.push(Piece::Disk { caller, fault });
        if dice.chance(25) {
            pieces.push(Piece::Tight {
                caller,
                entries: dice.within(8..80) as usize,
            });
        }
    }
    if dice.chance(5) {
        pieces.push(Piece::DeafSubscriber { caller });
    }
}

/// Providers that fail; the ones that a turn hangs on more often.
const FAILING: &[Modality] = &[
    Modality::Llm,
    Modality::Llm,
    Modality::Tts,
    Modality::Tts,
    Modality::Stt,
];

fn provider(dice: &mut Dice, modality: Modality) -> Piece {
    let part = Part {
        modality,
        second: dice.chance(15),
    };
    let ms = Duration::from_millis;
    let after = dice.pick(&[0, 0, 1, 2, 3, 5, 8, 20, 40]);
    let conduct = match dice.within(0..100) {
        0..20 => Conduct::good().late(ms(dice.within(50..2_500))),
        20..32 => Conduct::good().stalling_after(after),
        32..55 => {
            let fault = match dice.within(0..6) {
                0 => Fault::timeout("simulated"),
                1 => Fault::overload("simulated", Some(ms(dice.within(10..400)))),
                2 => Fault::transport("simulated"),
                3 => Fault::stream("simulated"),
                4 => Fault::model("simulated"),
                _ => Fault::blocked("provider_client_error", "simulated"),
            };
            Conduct::good().failing_after(after, fault)
        }
        55..67 => Conduct::good().truncated_after(after),
        67..79 => Conduct::good().panicking_after(after),
        79..92 => Conduct::good().deaf(),
        _ => Conduct::good().stopping_after(ms(dice.within(1..500))),
    };
    Piece::Provider {
        part,
        call: dice.pick(&[0, 0, 0, 1, 1, 2, 3]),
        conduct,
    }
}

fn twist(dice: &mut Dice) -> Twist {
    match dice.within(0..100) {
        0..25 => {
            let (from, to) = dice.pick(EDGES);
            Twist::Buffer {
                from,
                to,
                strategy: dice.pick(&[
                    DataHandling::Block,
                    DataHandling::DropOldest,
                    DataHandling::DropNewest,
                    DataHandling::Merge,
                    DataHandling::Sample,
                    DataHandling::LatestOnly,
                ]),
                items: dice.pick(&[1, 2, 3, 8, 30]),
                tuned: match dice.within(0..12) {
                    0 | 1 => Tuned::Credit,
                    2 => Tuned::Hybrid,
                    3 => Tuned::Coalesced {
                        ms: dice.within(20..400),
                    },
                    4 | 5 => Tuned::Aged {
                        ms: dice.within(20..400),
                    },
                    6 => Tuned::Atomic,
                    7 => Tuned::Reset,
                    _ => Tuned::Plain,
                },
            }
        }
        25..43 => Twist::Second(dice.pick(MODALITIES)),
        43..50 => Twist::Standby,
        50..60 => Twist::Branches {
            select: dice.chance(50),
        },
        60..70 => {
            let (from, to) = dice.pick(EDGES);
            Twist::Tap { from, to }
        }
        70..84 => {
            let (from, to) = if dice.chance(75) {
                dice.pick(TURN_EDGES)
            } else {
                dice.pick(EDGES)
            };
            Twist::Node {
                from,
                to,
                nth: dice.pick(&[1, 1, 2, 3, 5, 20, 60]),
                fault: match dice.within(0..4) {
                    0 => NodeFault::Panics,
                    1 => NodeFault::Fails,
                    2 => NodeFault::Hangs,
                    _ => NodeFault::Slow {
                        ms: dice.within(5..120),
                    },
                },
            }
        }
        84..88 => Twist::Budget {
            ms: dice.within(20..900),
        },
        88..94 => Twist::Patience {
            ms: dice.within(100..1_500),
        },
        94..96 => Twist::NoBargeIn,
        96 => Twist::StandbyVoice,
        97 | 98 => Twist::Impatience {
            silence_ms: dice.within(60..600),
            stall_ms: dice.within(40..400),
            cleanup_ms: dice.within(100..1_500),
        },
        _ => Twist::Diagnostics,
    }
}
