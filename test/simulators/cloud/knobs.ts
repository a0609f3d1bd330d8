import * as v from 'valibot';
import { machineKnobs } from '../machines/knobs.ts';

/*
 * How a simulated cloud behaves, whichever it imitates. All of it can be changed while it runs.
 * Times are milliseconds, shares lie between 0 and 1.
 */

const ms = v.pipe(v.number(), v.minValue(0), v.maxValue(86_400_000));
const share = v.pipe(v.number(), v.minValue(0), v.maxValue(1));
const whole = v.pipe(v.number(), v.integer(), v.minValue(0));

/** Stock of a type: everywhere alike, or by region; null is without end. */
const stock = v.union([v.nullable(whole), v.record(v.string(), v.nullable(whole))]);

/** What differs for some machines: the first entry that fits and is not used up applies. */
const override = v.strictObject({
  /** Regular expression over the machine's name. */
  name: v.optional(v.string()),
  type: v.optional(v.string()),
  region: v.optional(v.string()),
  /** How many machines it applies to at most. */
  count: v.optional(v.nullable(whole), null),
  boot_ms: v.optional(v.tuple([ms, ms])),
  address_late_ms: v.optional(ms),
  /** Neither address nor ports are ever shown, though it bills (dstack #1145). */
  address_never: v.optional(v.boolean(), false),
  /** It is gone so long after it came up. */
  vanish_after_ms: v.optional(ms),
  machine: v.optional(v.record(v.string(), v.unknown()), {}),
});

export const cloudKnobs = {
  /** From create to running, drawn between the two. */
  boot_ms: v.optional(v.tuple([ms, ms]), [100, 100]),
  /** Address and ports are shown so long after that. */
  address_late_ms: v.optional(ms, 0),
  /** What was created appears in lists only so much later … */
  list_lag_ms: v.optional(ms, 0),
  /** … and is 404 by its id so long (peters/horizon #372). */
  get_404_ms: v.optional(ms, 0),
  /** What has ended stays in lists so long, with the status it had. */
  gone_lag_ms: v.optional(ms, 0),
  /** From the accepted terminate to the end. */
  terminate_ms: v.optional(ms, 0),
  /** Machines of the account at once; null is without end. */
  quota: v.optional(v.nullable(whole), null),
  /** Stock by type; a type that is not named has plenty. */
  capacity: v.optional(v.record(v.string(), stock), {}),
  /** Each type and region is out of stock in so many of the periods, drawn by the seed. */
  flicker: v.optional(v.nullable(v.strictObject({ period_ms: ms, share })), null),
  /** Share of creates that are refused for capacity although the catalog lists the type. */
  refuse_share: v.optional(share, 0),
  /** Interruptible machines are taken away so long after they came up, drawn between the two. */
  preempt_after_ms: v.optional(v.nullable(v.tuple([ms, ms])), null),
  overrides: v.optional(v.array(override), []),
  /** Every new machine's inside. */
  machine: v.optional(machineKnobs, {}),
};

const cloudKnobsSchema = v.strictObject(cloudKnobs);

export type CloudKnobs = v.InferOutput<typeof cloudKnobsSchema>;
export type Override = v.InferOutput<typeof override>;

/** A knob, fault or act that makes no sense; the message says which and why. */
export class InvalidControl extends Error {
  override name = 'InvalidControl';
}

/** Parses by a schema, or throws InvalidControl that names the field. */
export function parseControl<S extends v.GenericSchema>(
  schema: S,
  value: unknown,
): v.InferOutput<S> {
  const result = v.safeParse(schema, value);
  if (result.success) return result.output;
  throw new InvalidControl(v.summarize(result.issues));
}

function isPlain(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Lays `changes` over `base`; objects named in `deep` are merged, everything else is replaced. */
export function merge(
  base: Record<string, unknown>,
  changes: Record<string, unknown>,
  deep: readonly string[] = ['machine', 'engine'],
): Record<string, unknown> {
  const next = { ...base };
  for (const [key, value] of Object.entries(changes)) {
    const old = next[key];
    next[key] =
      deep.includes(key) && isPlain(old) && isPlain(value) ? merge(old, value, deep) : value;
  }
  return next;
}
