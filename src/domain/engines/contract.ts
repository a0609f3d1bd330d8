import type { TemplateSpec } from '../template.ts';

/** What the machine gives an engine, and where things lie on it. */
export interface EngineSite {
  /** What the lines of the job name as `body.model`. */
  servingName: string;
  port: number;
  /** Folder on the machine that holds the weights already; null: the engine fetches them from the model's source. */
  modelPath: string | null;
  /** Folder on the machine that keeps what the engine downloads; null: where the engine itself keeps it. */
  cacheDir: string | null;
  /** Where the file with the engine's API key will be, which no other secret is in; null: it asks for no key. */
  apiKeyFile: string | null;
  /** Where the file with the credentials of the model's source will be; null: there are none. */
  secretsFile: string | null;
  /** The S3 interface of the object storage that holds the weights; null: that of AWS. */
  objectStore: { endpoint: string; region: string } | null;
  /**
   * Who can reach its port. `machine`: whoever is on the machine. `container`: it is in a container with a network of
   * its own, whose port is published on the machine's loopback. `world`: a public address, with an API key only.
   */
  listensTo: 'machine' | 'container' | 'world';
}

/** A secret by where it is kept: the key of this lease, or an entry of the secret that a template names. */
export type SecretSource = { kind: 'api_key' } | { kind: 'named'; name: string; entry: string };

/**
 * A file that has to be on the machine, readable for its owner only, before the engine starts. Its contents go there
 * over a pipe: never in a command line, which every process of the machine can read.
 */
export interface SecretFile {
  path: string;
  /** `env`: lines NAME=value for the environment of the engine. `yaml`: lines `name: "value"`; the engine reads it. */
  format: 'env' | 'yaml';
  entries: { name: string; source: SecretSource }[];
}

/** How to start an engine on a machine, and how to look at it. */
export interface EngineCommand {
  /** With a tag or a digest. */
  image: string;
  /** The whole command; `argv[0]` is the program, also where the image has an entry point of its own. */
  argv: string[];
  /** No secrets among them. */
  env: Record<string, string>;
  secretFiles: SecretFile[];
  /** Absolute paths that the engine reads or writes: a container mounts those of them that the machine has. */
  paths: string[];
  port: number;
  healthPath: string;
  metricsPath: string;
  readyTimeoutMs: number;
}

/** What differs from engine to engine. */
export type EngineStart = Pick<EngineCommand, 'argv' | 'env' | 'secretFiles' | 'paths'>;

/**
 * One kind of engine. Throws `InvalidInput` (`engine.…`) for a template that the engine would refuse, ignore or obey to
 * our harm, with what to write instead: a template is read before a machine is paid for.
 */
export interface EngineAdapter {
  /** As its makers spell it. */
  readonly title: string;
  start(spec: TemplateSpec, site: EngineSite): EngineStart;
}
