import { Validator } from '@seriousme/openapi-schema-validator';
import { Ajv2020 } from 'ajv/dist/2020.js';
import type { OpenApi, OperationObject } from '../../src/api/openapi.ts';

/** One operation of a document, by where it stands. */
export interface Described extends OperationObject {
  method: string;
  /** As the document spells it: `/v1/files/{id}`. */
  path: string;
}

/** Every operation of the document. */
export function operationsOf(document: OpenApi): Described[] {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ ...operation, method, path })),
  );
}

/** What is wrong with the document by the schema of OpenAPI 3.1; empty when nothing is. */
export async function documentErrors(document: OpenApi): Promise<unknown> {
  const result = await new Validator().validate({ ...structuredClone(document) });
  return result.valid ? '' : result.errors;
}

/** Says what is wrong with a value by a schema of the document; empty when nothing is. */
export type Check = (schema: object, value: unknown) => string;

/** Checks values by the document's schemas, which may refer to each other. */
export function schemaCheck(document: OpenApi): Check {
  // Not strict: `format: binary` and the like are annotations.
  const ajv = new Ajv2020({ strict: false, allErrors: true, validateFormats: false });
  ajv.addSchema({ $id: 'document', ...document });
  return (schema, value) => {
    const text = JSON.stringify(schema).replaceAll('"#/components', '"document#/components');
    const validate = ajv.compile(JSON.parse(text) as object);
    return validate(value) ? '' : ajv.errorsText(validate.errors);
  };
}
