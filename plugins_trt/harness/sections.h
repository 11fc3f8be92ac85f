// The sections of the harness, in the order in which they run.
#ifndef EDGEMAMBA_HARNESS_SECTIONS_H
#define EDGEMAMBA_HARNESS_SECTIONS_H

#include <string>
#include <vector>

#include "subject.h"

void check_creator(const Subject& subject);   // names, fields, hostile field data
void check_building(const Subject& subject);  // types, symbolic shapes, formats, configuration, workspace, tactics
void check_running(const Subject& subject);   // serialisation, clone, attach, shapes good and bad

// enqueue on device buffers against the expected results of case files; without a device, that it refuses.
void check_device(const Subject& subject, const std::vector<std::string>& case_files);

#endif  // EDGEMAMBA_HARNESS_SECTIONS_H
